"""The rank of each module, by a number, a share of the energy, the noise floor or a byte budget.

A rule is applied to one delta at a time (`decompose`); ranks that depend on all modules are chosen
at the end (`uniform_rank`, `least_common_rank`, `share_budget`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from regraft.errors import InputError
from regraft.lowrank.low_rank import LowRank
from regraft.lowrank.noise import Floor, InputSpectrum, Noise, denoised_squares, noise_floor
from regraft.lowrank.svd import truncated_svd


@dataclass(frozen=True)
class RankRule:
    """How ranks are chosen. Exactly one of `rank`, `energy`, `budget` is set, or none: auto.

    cap: the highest rank that the programs for the layout accept. Auto, energy and budget also stop
    at the break-even rank mn/(m+n), where the factors are as large as the delta itself.
    """

    rank: int | None = None
    energy: float | None = None
    budget: int | None = None
    cap: int | None = None

    def describe(self) -> str:
        """The rule as a phrase."""
        if self.rank is not None:
            return f"rank {self.rank}"
        if self.energy is not None:
            return f"{self.energy:.0%} of the energy above rounding"
        if self.budget is not None:
            return f"a budget of {self.budget} bytes"
        return "singular values above rounding"


def parse_rule(
    rank: int | str | None, energy: float | None, budget: int | None, cap: int | None
) -> RankRule:
    """The rule of the options --rank, --energy and --budget (bytes).

    Raises InputError for impossible values and combinations.
    """
    if energy is not None and budget is not None:
        raise InputError("--energy and --budget both decide the ranks; give one of them.")
    if rank not in (None, "auto") and (energy is not None or budget is not None):
        other = "--budget" if energy is None else "--energy"
        raise InputError(f"--rank and {other} both decide the ranks; give one of them.")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"--energy {energy} is not a share; give a number in (0, 1], such as 0.9.")
    if budget is not None:
        return RankRule(budget=budget, cap=cap)
    if energy is not None:
        return RankRule(energy=energy, cap=cap)
    if rank is None or rank == "auto":
        return RankRule(cap=cap)
    try:
        number = int(rank)
    except ValueError:
        raise InputError(f"--rank '{rank}' is neither a number nor 'auto'.") from None
    if number < 1:
        raise InputError(f"--rank {number} is too small; give at least 1, or 'auto'.")
    if cap is not None and number > cap:
        raise InputError(
            f"--rank {number} is more than the {cap} that portable adapters may have (vLLM's "
            "largest max-lora-rank); give --layout compact or a smaller rank."
        )
    return RankRule(rank=number, cap=cap)


def break_even(m: int, n: int) -> int:
    """The largest rank whose factors hold fewer numbers than the (m, n) matrix, at least 1."""
    return max(1, m * n // (m + n))


def decompose(
    delta: Tensor,
    rule: RankRule,
    noise: Noise,
    *,
    at_most: int | None = None,
    at_least: int = 0,
    seed: int = 0,
    exact: bool = False,
    half: Tensor | None = None,
    squared_norm: float,
    inputs: InputSpectrum | None = None,
) -> tuple[LowRank, Floor]:
    """The certified truncated SVD of `delta` (m, n) at the rank of the rule, and its noise floor.

    at_most: another bound on the rank, such as the share of a global budget. at_least: directions
    to compute for a module to which the rule gives fewer, but not none. half, squared_norm: see
    `truncated_svd`. inputs: where `delta` is a product D L (see `weighted`); the rule then counts
    energy and noise in the weighted norm.
    """
    m, n = delta.shape
    limit = min(m, n, rule.cap or m, at_most or m)
    if rule.rank is not None:
        svd = truncated_svd(
            delta, min(rule.rank, limit),
            seed=seed, exact=exact, half=half, squared_norm=squared_norm,
        )  # fmt: skip
        return svd, noise_floor(svd.S, squared_norm, (m, n), noise, inputs)
    limit = min(limit, break_even(m, n))
    guess, start = min(32, limit), None
    while True:
        svd = truncated_svd(
            delta, guess, seed=seed, exact=exact, half=half,
            squared_norm=squared_norm, start=start, certify=False,
        )  # fmt: skip
        floor = noise_floor(svd.S, squared_norm, (m, n), noise, inputs)
        rank = rank_by_rule(svd, floor, rule, (m, n))
        if rank < guess or guess == limit:
            break
        guess, start = min(2 * guess, limit), svd.Vt.T
    rank = min(max(rank, at_least), limit) if rank else 0
    if svd.method == "lapack" or rank == 0:
        return svd.truncated(rank), floor
    return truncated_svd(
        delta, rank, seed=seed, half=half, squared_norm=squared_norm, start=svd.Vt.T
    ), floor


def rank_by_rule(svd: LowRank, floor: Floor, rule: RankRule, shape: tuple[int, int]) -> int:
    """The rank by the rule, or the number of values in `svd` if the rule needs more of them."""
    if rule.rank is not None:
        return svd.rank
    if rule.energy is None:
        return floor.above
    target = rule.energy * max(svd.squared_norm - math.prod(shape) * floor.variance, 0.0)
    needed = int((denoised_squares(svd.S, floor, shape).cumsum(0) < target).sum()) + 1
    return min(needed, floor.above)


def uniform_rank(shapes: Sequence[tuple[int, int]], budget: int, itemsize: int) -> int:
    """The largest rank at which factors of one rank for all (m, n) fit in `budget` bytes.

    Raises InputError if not even rank 1 fits.
    """
    per_rank = sum(m + n for m, n in shapes) * itemsize
    rank = (budget - _header_bytes(len(shapes))) // max(1, per_rank)
    if rank < 1:
        raise InputError(
            f"--budget {budget} is less than the {per_rank + _header_bytes(len(shapes))} bytes "
            "that rank 1 takes; give a larger budget or fewer --modules."
        )
    return rank


def least_common_rank(losses: Sequence[tuple[Sequence[float], int]], slack: float = 0.0) -> int:
    """The least rank r for all modules whose total loss is at most (1 + slack)^2 times that of the
    modules' own ranks.

    losses: for each module the sum of squares lost at rank 0, 1, ..., and its own rank. So a single
    module that needs a high rank does not make all others as large by zero padding. A module whose
    own rank is lower than r gets r directions, which cost no more bytes than padding.
    """
    allowed = (1 + slack) ** 2 * math.fsum(loss[own] for loss, own in losses)
    highest = max(own for _, own in losses)
    return next(
        rank
        for rank in range(1, highest + 1)
        if rank == highest
        or math.fsum(loss[min(rank, len(loss) - 1)] for loss, _ in losses) <= allowed
    )


def share_budget(
    spectra: Mapping[str, tuple[Sequence[float], tuple[int, int]]], budget: int, itemsize: int
) -> dict[str, int]:
    """Ranks under one byte budget: take the singular value with most energy per byte, repeatedly.

    spectra: module -> (descending singular values above rounding, (m, n)). Each module's values
    descend, so the greedy choice minimises the total squared error for the bytes spent, up to the
    last value that does not fit.
    """
    remaining = budget - _header_bytes(len(spectra))
    ranks = dict.fromkeys(spectra, 0)
    heap: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        values, (m, n) = spectra[name]
        if ranks[name] < len(values):
            heapq.heappush(heap, (-(values[ranks[name]] ** 2) / (m + n), name))

    for name in spectra:
        offer(name)
    while heap:
        _, name = heapq.heappop(heap)
        m, n = spectra[name][1]
        cost = (m + n) * itemsize
        if cost > remaining:
            continue  # a value of a smaller module may still fit
        remaining -= cost
        ranks[name] += 1
        offer(name)
    return ranks


def _header_bytes(modules: int) -> int:
    """Upper bound on a safetensors header with two factors a module."""
    return 64 + modules * 2 * 192
