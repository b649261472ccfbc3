"""What a graft carried over: ratios of scores on the same items, with intervals.

With R the recipient, R' the recipient with only the donor's RoPE, D the donor, G the graft:

    transfer         T  = (G - R)  / (D - R)
    weight transfer  Tw = (G - R') / (D - R')      what the weights did beyond the RoPE
    retention        K  = G / R                    within the recipient's own context

and the same of the recovered graft. Intervals are paired bootstraps over items: every resample
takes the same items of all models. A ratio whose denominator is within two of its own standard
errors is None: noise divided by noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RULER_THRESHOLD = 0.856  # Llama-2-7B-chat at 4096 tokens (arXiv 2404.06654)
SELF_THRESHOLD = 0.85  # of the model's own shortest length, as NoLiMa does (arXiv 2502.05167)
_RESAMPLES = 2000
_Z = 1.96
_FEW = 30  # items below which a bootstrap is too narrow


def interval(scores: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean: Wilson's score interval where scores are right or wrong, or few, or
    all alike (which a bootstrap takes for certain); else a bootstrap.

    Of scores between 0 and 1 Wilson's interval is a cautious one, for none vary more than those
    that are 0 or 1.
    """
    values = np.asarray(scores, dtype=np.float64)
    unit = values.min() >= 0 and values.max() <= 1
    alike = values.min() == values.max()
    if unit and (alike or len(values) < _FEW or np.isin(values, (0, 1)).all()):
        return _wilson(float(values.mean()), len(values))
    means = values[_resamples(len(values), seed)].mean(1)
    return _percentiles(means)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of the mean of measurements without bounds, by Student's t; None of one."""
    if len(values) < 2:
        return None
    mean, margin = float(np.mean(values)), _student(len(values) - 1) * standard_error(values)
    return mean - margin, mean + margin


def _wilson(mean: float, count: int) -> tuple[float, float]:
    square = _Z**2
    centre = (mean + square / (2 * count)) / (1 + square / count)
    spread = mean * (1 - mean) / count + square / (4 * count**2)
    margin = _Z * np.sqrt(spread) / (1 + square / count)
    low, high = float(centre - margin), float(centre + margin)
    return (0.0 if mean == 0 else max(0.0, low)), (1.0 if mean == 1 else min(1.0, high))


def _student(freedom: int) -> float:
    """The 97.5% quantile of Student's t, by its expansion in 1 / freedom (Abramowitz and Stegun
    26.7.5): 2.4% below at 4 degrees of freedom, below 0.1% from 10."""
    z = _Z
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def ratio(
    over: Sequence[float], over_base: Sequence[float] | None,
    under: Sequence[float], under_base: Sequence[float] | None, seed: int = 0,
) -> dict[str, Any] | None:  # fmt: skip
    """(mean(over) - mean(over_base)) / (mean(under) - mean(under_base)) with its interval, or None
    where the denominator is within two standard errors of 0. All are of the same items in the same
    order; a base of None is 0."""
    top, bottom = _minus(over, over_base), _minus(under, under_base)
    if abs(bottom.mean()) <= 2 * standard_error(bottom) or bottom.mean() == 0:
        return None
    drawn = _resamples(len(bottom), seed)
    below = bottom[drawn].mean(1)
    ratios = top[drawn].mean(1)[below != 0] / below[below != 0]
    value = float(top.mean() / bottom.mean())
    low, high = _percentiles(ratios)
    if low == high:
        # over is `value` times under on every item; a share of items not seen here may differ by 1
        unseen = _Z**2 / (len(bottom) + _Z**2)
        margin = unseen / abs(float(bottom.mean()))
        return {"value": value, "low": value - margin, "high": value + margin}
    if len(bottom) < _FEW:  # a bootstrap of few items is too narrow by these two factors
        count = len(bottom)
        wider = _student(count - 1) / _Z * float(np.sqrt(count / (count - 1)))
        low, high = value - wider * (value - low), value + wider * (high - value)
    return {"value": value, "low": low, "high": high}


def standard_error(scores: Sequence[float] | NDArray[np.float64]) -> float:
    """Of their mean; without bounds for a single one."""
    return float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else np.inf


def effective_length(scores: Mapping[int, float], error: float = 0.0) -> dict[str, int | None]:
    """Greatest length whose score, and that of all shorter ones, reaches a threshold: RULER's 85.6%
    and 85% of the model's own score at the shortest length. None: not even that one. A model whose
    score there is within two of its standard errors, `error`, of 0 has no length of its own."""
    lengths = sorted(scores)
    own = SELF_THRESHOLD * scores[lengths[0]]

    def reached(threshold: float) -> int | None:
        best = None
        for length in lengths:
            if scores[length] < threshold:
                break
            best = length
        return best

    return {
        "ruler": reached(RULER_THRESHOLD),
        "own": reached(own) if scores[lengths[0]] > 2 * error else None,
    }


def compare(
    scores: Mapping[str, Sequence[float]], *, within: bool, skill: bool
) -> dict[str, dict[str, Any] | None]:
    """The ratios of one cell. scores: of each role, item by item. within: the cell lies in the
    recipient's own context, so there is something to retain. skill: no use of context is measured,
    so nothing of it is to transfer."""
    found: dict[str, dict[str, Any] | None] = {}
    recipient, donor = scores["recipient"], scores["donor"]
    for role in ("graft", "recovered"):
        if role not in scores:
            continue
        mine = scores[role]
        if not skill:
            found[f"transfer {role}"] = ratio(mine, recipient, donor, recipient)
            alone = scores["theta only"]
            found[f"weight transfer {role}"] = ratio(mine, alone, donor, alone)
        if within:
            found[f"retention {role}"] = ratio(mine, None, recipient, None)
    return found


def _minus(values: Sequence[float], base: Sequence[float] | None) -> NDArray[np.float64]:
    mine = np.asarray(values, dtype=np.float64)
    return mine if base is None else mine - np.asarray(base, dtype=np.float64)


def _resamples(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
