"""Error, size and captured signal of the same extraction at lower ranks.

They follow from the spectra of the extraction. The error is against the whole change, including the
rounding noise of the two checkpoints; the signal is the change without that noise, so its captured
share compares ranks also where noise dominates the error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from regraft.adapters.extract.decomposition import Decomposition
from regraft.records import AdapterTotals, RankGain
from regraft.units import format_bytes

LITTLE_SIGNAL = 0.02  # share of ||D||^2 below which the signal is within the error of its estimate
_NEARLY_ALL = 0.02  # share of the signal that a suggested smaller rank may lose
_SMALLER = 0.75  # share of the bytes that a suggested smaller rank may have at most


def gains(
    decompositions: Mapping[str, Decomposition],
    ranks: Mapping[str, int],
    roundings: Mapping[str, float],
    *,
    itemsize: int,
    padded: bool,
) -> list[RankGain]:
    """Figures for ascending powers of two and the highest rank in `ranks`.

    roundings: module -> ||B A - stored B A||_F^2 at its rank; at lower ranks it is scaled with the
    captured energy. padded: whether all modules are stored at one rank.
    """
    highest = max(ranks.values())
    steps = [2**i for i in range(highest.bit_length()) if 2**i < highest]
    squared = math.fsum(decomposition.delta_norm**2 for decomposition in decompositions.values())
    measured = math.fsum(decomposition.squared_norm for decomposition in decompositions.values())
    signal = math.fsum(decomposition.squared_signal for decomposition in decompositions.values())
    tails = {name: decomposition.plain_tails() for name, decomposition in decompositions.items()}
    signals = {
        name: decomposition.captured_signal() for name, decomposition in decompositions.items()
    }
    result = []
    for rank in (*steps, highest):
        missed = captured = 0.0
        parameters = 0
        for name, decomposition in decompositions.items():
            own = min(rank, ranks[name])
            missed += tails[name][own]
            if whole := tails[name][0] - tails[name][ranks[name]]:
                share = (tails[name][0] - tails[name][own]) / whole
                missed += share * roundings.get(name, 0.0)
            captured += signals[name][own]
            parameters += sum(decomposition.shape) * (
                (rank if padded else own) if ranks[name] else 0
            )
        result.append(
            RankGain(
                rank=rank,
                bytes=parameters * itemsize,
                error=math.sqrt(missed / squared),
                signal_captured=captured / signal if signal > LITTLE_SIGNAL * measured else None,
                weighted_error=_weighted_error(decompositions, ranks, rank),
            )
        )
    return result


def _weighted_error(
    decompositions: Mapping[str, Decomposition], ranks: Mapping[str, int], rank: int
) -> float | None:
    """The relative error in the norms of the inputs, before rounding; None if none is weighted."""
    if all(decomposition.weighted_norm is None for decomposition in decompositions.values()):
        return None
    missed = math.fsum(d.squared_tails()[min(rank, ranks[n])] for n, d in decompositions.items())
    return math.sqrt(missed / math.fsum(d.squared_norm for d in decompositions.values()))


def suggested_rank(by_rank: list[RankGain], cap: int | None, *, more_above: bool) -> int | None:
    """The least rank that captures nearly as much signal as the highest and saves bytes.

    Twice the highest rank, up to `cap`, if the last doubling gained much and directions above
    rounding remain (`more_above`). None where there is too little signal to decide.
    """
    highest = by_rank[-1]
    if highest.signal_captured is None:
        return None
    for gain in by_rank:
        assert gain.signal_captured is not None
        nearly_all = highest.signal_captured - gain.signal_captured < _NEARLY_ALL
        if gain.rank == highest.rank or (nearly_all and gain.bytes <= _SMALLER * highest.bytes):
            break
    before = by_rank[-2].signal_captured if len(by_rank) > 1 else 0.0
    assert before is not None
    more_above = more_above and highest.signal_captured - before >= _NEARLY_ALL
    if gain.rank == highest.rank and more_above:
        return min(2 * highest.rank, cap or 2 * highest.rank)
    return gain.rank


def describe(totals: AdapterTotals, above: str) -> list[tuple[str, str]]:
    """(label, text) of the summary on rank. above: how many directions are above rounding."""
    assert totals.signal is not None
    if totals.signal_captured is None:
        lines = [
            (
                "above rounding",
                f"{totals.signal:.1%} of the change's energy: rounding of the stored weights "
                "explains nearly all of it",
            )
        ]
    else:
        lines = [
            (
                "above rounding",
                f"{totals.signal:.1%} of the change's energy ({above}); the adapter has "
                f"{totals.signal_captured:.1%} of that",
            )
        ]
    lines += [(f"at rank {gain.rank}", _step(gain)) for gain in totals.by_rank[-4:-1]]
    if totals.suggested_rank is not None:
        lines.append(("suggested rank", _suggestion(totals.by_rank, totals.suggested_rank)))
    return lines


def _step(gain: RankGain) -> str:
    share = "" if gain.signal_captured is None else f"{gain.signal_captured:.1%} of that, "
    error = f"error {gain.error:.4f}"
    if gain.weighted_error is not None:
        error = f"error on inputs {gain.weighted_error:.4f}, plain {gain.error:.4f}"
    return f"{share}{error}, {format_bytes(gain.bytes)}"


def _suggestion(by_rank: list[RankGain], rank: int) -> str:
    highest = by_rank[-1]
    if rank > highest.rank:
        return f"{rank}: more directions are above rounding, and the last doubling still gained"
    if rank == highest.rank:
        return f"{rank}, as it is"
    gain = next(gain for gain in by_rank if gain.rank == rank)
    return (
        f"{rank}: nearly the same at {format_bytes(gain.bytes)} instead of "
        f"{format_bytes(highest.bytes)}"
    )
