"""Decomposes every module's delta and chooses the ranks.

Factors are written to a spool as they are computed, so that a killed run resumes; ranks that depend
on all modules (a byte budget) are chosen when all spectra are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from regraft import progress
from regraft.adapters.extract.deltas import Delta, compare, deltas
from regraft.adapters.extract.select import Module, Plan
from regraft.checkpoint.hf.roles import Role
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.shard_plan import PlannedTensor, write_safetensors
from regraft.checkpoint.write.staging import Staging
from regraft.lowrank.low_rank import LowRank
from regraft.lowrank.noise import Floor, denoised_squares
from regraft.lowrank.rank import (
    break_even,
    decompose,
    least_common_rank,
    rank_by_rule,
    share_budget,
    uniform_rank,
)

_AUTO_SLACK = 0.01  # relative increase of the error that `--rank auto` accepts for a smaller rank
# Least number of directions computed of a module that may be stored at a higher rank than its own.
_SPARE = 32


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """The decomposition of one module's delta D; its factors are in the spool.

    spectrum, upper: computed singular values, and proven upper bounds on D's own. above: how many
    are above the noise edge. rank: by the rank rule. noise_variance: of the rounding of the two
    checkpoints, per entry. squared_residual: ||D - U S V'||_F^2. resolution, squared_tail,
    shortened: see `ErrorBounds`.
    """

    shape: list[int]
    delta_norm: float
    relative_delta: float
    spectrum: list[float]
    upper: list[float]
    above: int
    rank: int = 0
    noise_variance: float = 0.0
    noise_edge: float = 0.0
    squared_residual: float = 0.0
    resolution: float = 0.0
    squared_tail: float | None = None
    shortened: bool = False
    method: str = "zero"
    passes: int = 0

    @property
    def unchanged(self) -> bool:
        """Whether D is zero."""
        return self.delta_norm == 0.0

    @property
    def squared_signal(self) -> float:
        """||D||_F^2 less the expected share of the rounding of the two checkpoints."""
        return max(self.delta_norm**2 - math.prod(self.shape) * self.noise_variance, 0.0)

    def captured_signal(self) -> list[float]:
        """The part of `squared_signal` in the first r directions, r = 0, 1, ..."""
        floor = Floor(self.noise_variance, self.noise_edge, self.above)
        spectrum = torch.tensor(self.spectrum, dtype=torch.float64)
        squares = denoised_squares(spectrum, floor, (self.shape[0], self.shape[1]))
        return [0.0, *squares.cumsum(0).clamp_max(self.squared_signal).tolist()]

    def missed_signal(self) -> list[float]:
        """The rest of `squared_signal`, r = 0, 1, ..."""
        return [self.squared_signal - captured for captured in self.captured_signal()]

    def squared_tails(self) -> list[float]:
        """||D - D_r||_F^2 of the first r directions, r = 0, 1, ..."""
        squares = torch.tensor(self.spectrum, dtype=torch.float64).square()
        tails = squares.flip(0).cumsum(0).flip(0).tolist()
        return [self.squared_residual + tail for tail in (*tails, 0.0)]


@dataclass(frozen=True, kw_only=True)
class RestChange:
    """The change of one tensor that is not factorised. rows_not_shared: rows that the extended
    model has more than the base; negative if fewer."""

    role: str
    delta_norm: float
    relative_delta: float | None
    rows_not_shared: int


class Factorizer:
    """Decomposes the modules of a plan into the spool of the staging folder.

    decompositions, ranks: by module, complete after `run`.
    """

    def __init__(
        self,
        base: Checkpoint,
        extended: Checkpoint,
        plan: Plan,
        staging: Staging,
        device: torch.device,
        *,
        itemsize: int,
        seed: int,
        exact: bool,
    ) -> None:
        self._base, self._extended = base, extended
        self._plan, self._staging, self._device = plan, staging, device
        self._itemsize, self._seed, self._exact = itemsize, seed, exact
        self.decompositions: dict[str, Decomposition] = {}
        self.ranks: dict[str, int] = {}

    def run(self) -> None:
        """Decompose every module up to the highest rank it can get, then choose the ranks."""
        at_most = self._rank_limits()
        self._decompose_all(at_most)
        budget = self._plan.rule.budget
        if budget is None:
            self.ranks = self._ranks_by_rule()
            return
        while True:
            spectra = {
                name: (d.spectrum[: d.above], (d.shape[0], d.shape[1]))
                for name, d in self.decompositions.items()
            }
            self.ranks = share_budget(spectra, budget, self._itemsize)
            limited = {  # their share of the budget allows a higher rank than was computed
                name
                for name, rank in self.ranks.items()
                if rank == at_most[name] == len(self.decompositions[name].spectrum)
                and rank < break_even(*spectra[name][1])
            }
            if not limited:
                return
            for name in limited:
                at_most[name] *= 2
            self._decompose_all(at_most, limited)

    def _ranks_by_rule(self) -> dict[str, int]:
        """Each module's own rank by the rule.

        In the portable layout all modules are stored at one rank: the least with the same captured
        signal (`--energy`) or at most 1% more error (`--rank auto`) in all modules together.
        """
        own = {name: d.rank for name, d in self.decompositions.items()}
        changed = {name: d for name, d in self.decompositions.items() if d.rank}
        rule = self._plan.rule
        if self._plan.layout != "portable" or rule.rank is not None or not changed:
            return own
        if rule.energy is None:
            tails = [(d.squared_tails(), d.rank) for d in changed.values()]
            common = least_common_rank(tails, _AUTO_SLACK)
        else:
            common = least_common_rank([(d.missed_signal(), d.rank) for d in changed.values()])
        return own | {name: min(common, len(d.spectrum)) for name, d in changed.items()}

    def factors(self, module: Module, rank: int) -> tuple[Tensor, Tensor]:
        """(B, A) from the spool, cut to `rank`, in the orientation of the stored weight."""
        with safe_open(str(self._spooled(module)), framework="pt") as file:
            return file.get_tensor("B")[:, :rank], file.get_tensor("A")[:rank]

    def _rank_limits(self) -> dict[str, int]:
        """The highest rank to compute of each module; under a budget four times the uniform
        share."""
        budget = self._plan.rule.budget
        if budget is None:
            return {module.name: min(module.shape) for module in self._plan.modules}
        shapes = [module.shape for module in self._plan.modules]
        share = uniform_rank(shapes, budget, self._itemsize)
        return {module.name: 4 * share for module in self._plan.modules}

    def _decompose_all(self, at_most: Mapping[str, int], only: set[str] | None = None) -> None:
        modules = [m for m in self._plan.modules if only is None or m.name in only]
        work = sum(math.prod(m.shape) for m in modules)
        with progress.bar("Extracting", work) as bar:
            remaining = []
            for module in modules:
                entry = self._staging.done(_unit(module, at_most))
                if entry is not None and self._spooled(module).is_file():
                    self.decompositions[module.name] = Decomposition(**entry)
                    bar.advance(math.prod(module.shape))
                else:
                    remaining.append(module)
            for module, delta in deltas(self._base, self._extended, remaining, self._device):
                result = self._decompose(module, delta, at_most[module.name])
                self.decompositions[module.name] = result
                self._staging.record(_unit(module, at_most), **asdict(result))
                bar.advance(math.prod(module.shape), text=module.name)
        # in the order of the plan, so that sums over modules are the same in a resumed run
        names = [m.name for m in self._plan.modules if m.name in self.decompositions]
        self.decompositions = {name: self.decompositions[name] for name in names}

    def _decompose(self, module: Module, delta: Delta, at_most: int) -> Decomposition:
        shape, squared = list(module.shape), delta.squared_norm
        norm = math.sqrt(squared)
        relative = math.sqrt(squared / delta.squared_base) if delta.squared_base else 0.0
        if squared == 0.0:
            return Decomposition(
                shape=shape, delta_norm=norm, relative_delta=relative, spectrum=[], upper=[],
                above=0,
            )  # fmt: skip
        svd, floor = decompose(
            delta.matrix, self._plan.rule, delta.noise,
            at_most=at_most, at_least=_SPARE if self._plan.layout == "portable" else 0,
            seed=self._seed, exact=self._exact,
            half=delta.half, squared_norm=squared,
        )  # fmt: skip
        self._save(module, svd)
        return Decomposition(
            shape=shape,
            delta_norm=norm,
            relative_delta=relative,
            spectrum=svd.S.tolist(),
            upper=svd.bounds.upper.tolist(),
            resolution=svd.bounds.resolution,
            squared_tail=svd.bounds.squared_tail,
            shortened=svd.bounds.shortened,
            above=floor.above,
            rank=min(rank_by_rule(svd, floor, self._plan.rule, module.shape), svd.rank),
            noise_variance=floor.variance,
            noise_edge=floor.edge,
            squared_residual=svd.squared_error(),
            method=svd.method,
            passes=svd.passes,
        )

    def _save(self, module: Module, svd: LowRank) -> None:
        b, a = svd.factors()
        factors = {"A": a.cpu().contiguous(), "B": b.cpu().contiguous()}
        plan = [PlannedTensor.like(side, part) for side, part in factors.items()]
        write_safetensors(self._spooled(module), factors.items(), plan)

    def _spooled(self, module: Module) -> Path:
        return self._staging.spool / f"{module.name}.safetensors"


def _unit(module: Module, at_most: Mapping[str, int]) -> str:
    """The key of a module's entry in the journal."""
    return f"{module.name} <= {at_most[module.name]}"


def measure_rest(
    base: Checkpoint, extended: Checkpoint, names: list[str], roles: Mapping[str, Role]
) -> dict[str, RestChange]:
    """The change of every tensor that is not factorised."""
    rest: dict[str, RestChange] = {}
    with progress.bar("Measuring the rest", max(1, len(names))) as bar:
        for name in names:
            squared_delta, squared_base = compare(base, extended, name)[:2]
            rows, own = extended.tensors[name].shape[:1], base.tensors[name].shape[:1]
            rest[name] = RestChange(
                role=roles[name].kind,
                delta_norm=math.sqrt(squared_delta),
                relative_delta=math.sqrt(squared_delta / squared_base) if squared_base else None,
                rows_not_shared=rows[0] - own[0] if rows != own else 0,
            )
            bar.advance()
    return rest
