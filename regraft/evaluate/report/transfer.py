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


def interval(scores: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the mean. Where all are right or all wrong, which a bootstrap takes
    for certain, Wilson's score interval."""
    values = np.asarray(scores, dtype=np.float64)
    if values.min() == values.max() and values[0] in (0, 1):
        unseen = _Z**2 / (len(values) + _Z**2)
        return (0.0, unseen) if values[0] == 0 else (1 - unseen, 1.0)
    means = values[_resamples(len(values), seed)].mean(1)
    return _percentiles(means)


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
    low, high = _percentiles(ratios)
    return {"value": float(top.mean() / bottom.mean()), "low": low, "high": high}


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
