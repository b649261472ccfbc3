"""Means and ratios of scores with 95% intervals: the maths that scoring and reporting share.

Ratios come with paired bootstraps over items: every resample takes the same items of all models. If
items share texts, every resample draws texts and then, within each, questions, and standard errors
are those of sums over texts: scores of one text are not independent. `texts` is the number of each
score's text, from 0, or None if every one has its own. A
ratio whose denominator is within two of its own standard errors is None, since it would be noise
divided by noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_Z = 1.96
_FEW = 30  # items below which a bootstrap is too narrow


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means and its 95% interval."""

    value: float
    low: float
    high: float


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; `values` must not be empty."""
    return sum(values) / len(values)


def score_interval(
    scores: Sequence[float], seed: int = 0, texts: Sequence[int] | None = None
) -> tuple[float, float]:
    """95% interval of the mean of scores.

    Wilson's score interval if all scores are 0 or 1, or they are few, or all are equal (a bootstrap
    would take their mean for certain); otherwise a percentile bootstrap. Wilson's interval is
    conservative for scores between 0 and 1: none vary more than those that are 0 or 1. Scores that
    share texts are bootstrapped unless all are equal or there is one text; then Wilson's interval
    is that of as many scores as there are texts.
    """
    values = np.asarray(scores, dtype=np.float64)
    unit = values.min() >= 0 and values.max() <= 1
    equal = values.min() == values.max()
    count = _independent(scores, texts)
    middle = float(values.mean())
    few = count < (_FEW if texts is None else 2)
    if unit and (equal or few or (texts is None and np.isin(values, (0, 1)).all())):
        return _wilson(middle, count)
    (means,) = _bootstrap(seed, texts, values)
    low, high = _percentiles(means)
    if texts is not None and count < _FEW:
        low, high = _widened(middle, low, high, count)
    return (max(0.0, low), min(1.0, high)) if unit else (low, high)


def mean_interval(
    values: Sequence[float], texts: Sequence[int] | None = None
) -> tuple[float, float] | None:
    """95% interval of the mean of unbounded measurements, by Student's t; None for one value or
    text."""
    if (count := _independent(values, texts)) < 2:
        return None
    middle, margin = float(np.mean(values)), _student(count - 1) * standard_error(values, texts)
    return middle - margin, middle + margin


def standard_error(
    scores: Sequence[float] | NDArray[np.float64], texts: Sequence[int] | None = None
) -> float:
    """The standard error of the mean; infinite for a single score or text."""
    if (count := _independent(scores, texts)) < 2:
        return np.inf
    if texts is None:
        return float(np.std(scores, ddof=1) / np.sqrt(count))
    residuals = np.bincount(texts, np.asarray(scores) - np.mean(scores))
    return float(np.sqrt(count / (count - 1) * (residuals**2).sum()) / len(scores))


def ratio(
    over: Sequence[float], over_base: Sequence[float] | None,
    under: Sequence[float], under_base: Sequence[float] | None, seed: int = 0,
    texts: Sequence[int] | None = None,
) -> Ratio | None:  # fmt: skip
    """(mean(over) - mean(over_base)) / (mean(under) - mean(under_base)) with its interval.

    All four hold scores of the same items in the same order; a base of None is 0. None if the
    denominator is within two standard errors of 0.
    """
    top, bottom = _difference(over, over_base), _difference(under, under_base)
    if abs(bottom.mean()) <= 2 * standard_error(bottom, texts) or bottom.mean() == 0:
        return None
    count = _independent(under, texts)
    above, below = _bootstrap(seed, texts, top, bottom)
    ratios = above[below != 0] / below[below != 0]
    value = float(top.mean() / bottom.mean())
    low, high = _percentiles(ratios)
    if low == high:
        # over is `value` times under on every item; a share of items not seen here may differ by 1
        unseen = _Z**2 / (count + _Z**2)
        margin = unseen / abs(float(bottom.mean()))
        return Ratio(value, value - margin, value + margin)
    if count < _FEW:
        low, high = _widened(value, low, high, count)
    return Ratio(value, low, high)


def quotient(
    top: float, top_interval: tuple[float, float],
    bottom: float, bottom_interval: tuple[float, float],
) -> Ratio | None:  # fmt: skip
    """top / bottom of two means from different items, with the interval that follows from theirs.

    By recovery of their variances (Donner and Zou, Stat. Methods Med. Res. 21, 2012), which keeps
    the shape of Wilson's intervals. None if the denominator's interval reaches to 0 or so far that
    the quotient has no bound.
    """
    (low, high), (least, most) = top_interval, bottom_interval
    if least <= 0 or most >= 2 * bottom:
        return None
    product = top * bottom
    below = product**2 - low * most * (2 * top - low) * (2 * bottom - most)
    above = product**2 - high * least * (2 * top - high) * (2 * bottom - least)
    return Ratio(
        top / bottom,
        (product - float(np.sqrt(max(0.0, below)))) / (most * (2 * bottom - most)),
        (product + float(np.sqrt(max(0.0, above)))) / (least * (2 * bottom - least)),
    )


def average(
    means: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """The interval of the mean of several means, each of other items, from theirs: as `quotient`,
    by recovery of their variances."""
    middle, count = mean(means), len(means)
    below, above = (
        math.sqrt(
            sum((value - bounds[side]) ** 2 for value, bounds in zip(means, intervals, strict=True))
        )
        for side in (0, 1)
    )
    return middle - below / count, middle + above / count


def _wilson(centre: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion `centre` of `count` items."""
    square = _Z**2
    middle = (centre + square / (2 * count)) / (1 + square / count)
    variance = centre * (1 - centre) / count + square / (4 * count**2)
    margin = _Z * np.sqrt(variance) / (1 + square / count)
    low, high = float(middle - margin), float(middle + margin)
    return (0.0 if centre == 0 else max(0.0, low)), (1.0 if centre == 1 else min(1.0, high))


def _student(freedom: int) -> float:
    """The 97.5% quantile of Student's t with `freedom` degrees of freedom.

    By its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5): 2.4% too small at 4 degrees of
    freedom, less than 0.1% from 10.
    """
    z = _Z
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _widened(value: float, low: float, high: float, count: int) -> tuple[float, float]:
    """The interval of a bootstrap of few items, which is too narrow by these two factors."""
    wider = _student(count - 1) / _Z * float(np.sqrt(count / (count - 1)))
    return value - wider * (value - low), value + wider * (high - value)


def _independent(scores: Sequence[float] | NDArray[np.float64], texts: Sequence[int] | None) -> int:
    """The number of scores, or of their texts."""
    return len(scores) if texts is None else max(texts) + 1


def _difference(values: Sequence[float], base: Sequence[float] | None) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array if base is None else array - np.asarray(base, dtype=np.float64)


def _bootstrap(
    seed: int, texts: Sequence[int] | None, *columns: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """The mean of each column in every resample, which takes the same items of all columns."""
    rng, count = np.random.default_rng(seed), len(columns[0])
    if texts is None:
        drawn = rng.integers(0, count, (_RESAMPLES, count))
        return [column[drawn].mean(1) for column in columns]
    sizes = np.bincount(texts)
    taken = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), _RESAMPLES)
    weights = np.zeros((_RESAMPLES, count))  # how often each item is taken
    for text, size in enumerate(sizes):
        # a text taken k times gives k draws of all its questions
        weights[:, np.equal(texts, text)] = rng.multinomial(
            size * taken[:, text], np.full(size, 1 / size)
        )
    return [weights @ column / weights.sum(1) for column in columns]


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
