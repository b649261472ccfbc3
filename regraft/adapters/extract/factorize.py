"""Decomposes every module's delta and chooses the ranks.

Factors are written to a spool as they are computed, so that a killed run resumes; ranks that depend
on all modules (a byte budget) are chosen when all spectra are known.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from regraft import progress
from regraft.adapters.extract.decomposition import Decomposition
from regraft.adapters.extract.deltas import Delta, deltas
from regraft.adapters.extract.moments import Calibration, input_norms
from regraft.adapters.extract.select import Module, Plan
from regraft.adapters.extract.streams import in_order, matrices_at_once
from regraft.adapters.folder import WEIGHTS
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.shard_plan import PlannedTensor, write_safetensors
from regraft.checkpoint.write.staging import Staging
from regraft.lowrank.blocks import squared_frobenius
from regraft.lowrank.low_rank import LowRank, rounding_error
from regraft.lowrank.rank import (
    break_even,
    decompose,
    least_common_rank,
    rank_by_rule,
    share_budget,
    uniform_rank,
)
from regraft.lowrank.weighted import WeightedNorm, weighted_factors

_AUTO_SLACK = 0.01  # relative increase of the error that `--rank auto` accepts for a smaller rank
# Least number of directions computed of a module that may be stored at a higher rank than its own.
_SPARE = 32


class Factorizer:
    """Decomposes the modules of a plan into the spool of the staging folder.

    calibration: the rows by whose inputs modules in layers are weighted, None for the plain norm.
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
        dtype: torch.dtype,
        seed: int,
        exact: bool,
        calibration: Calibration | None = None,
    ) -> None:
        self._base, self._extended = base, extended
        self._plan, self._staging, self._device = plan, staging, device
        self._dtype, self._itemsize, self._seed, self._exact = dtype, dtype.itemsize, seed, exact
        self._calibration = calibration
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

    def weighted_rounding(self, module: Module, rank: int) -> float | None:
        """||(B A - stored B A) L||_F^2 at `rank`, None in the plain norm."""
        if self.decompositions[module.name].weighted_norm is None:
            return None
        with safe_open(str(self._spooled(module)), framework="pt") as file:
            b, stored_b = (file.get_tensor(key)[:, :rank] for key in ("exact_B", "B"))
            a, stored_a = (file.get_tensor(key)[:rank] for key in ("weighted_A", "stored_A"))
        return rounding_error((b, a), (stored_b.to(self._dtype), stored_a))

    def file_sizes(self) -> dict[str, int]:
        """Bytes of the adapter's weights and of the spool, by file; at most, where the rule
        gives ranks by the weights."""
        rule, weights, sizes = self._plan.rule, 0, dict[str, int]()
        for module, limit in zip(self._plan.modules, self._rank_limits().values(), strict=True):
            rank = min(limit, *module.shape, rule.rank or rule.cap or limit)
            if rule.rank is None:
                rank = min(rank, break_even(*module.shape))
            (m, n), weighted = module.shape, self._calibration and module.layer is not None
            number = 12 * m + 20 * n if weighted else 4 * (m + n)  # see `_save_weighted`
            sizes[str(self._spooled(module))] = number * rank
            weights += (m + n) * rank * self._itemsize
        return {**sizes, WEIGHTS: min(weights, rule.budget or weights)}

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
            for norm, members in self._groups(remaining, bar):
                with closing(self._decomposed(members, at_most, norm)) as results:
                    for module, result in results:
                        self.decompositions[module.name] = result
                        self._staging.record(_unit(module, at_most), **asdict(result))
                        bar.advance(math.prod(module.shape), text=module.name)
        # in the order of the plan, so that sums over modules are the same in a resumed run
        names = [m.name for m in self._plan.modules if m.name in self.decompositions]
        self.decompositions = {name: self.decompositions[name] for name in names}

    def _decomposed(
        self, modules: list[Module], at_most: Mapping[str, int], weighted: WeightedNorm | None
    ) -> Generator[tuple[Module, Decomposition]]:
        """The modules with their decompositions; several are computed at once in the plain norm on
        a GPU."""
        device = self._device

        def work(item: tuple[Module, Delta]) -> tuple[Module, Decomposition]:
            module, delta = item
            return module, self._decompose(module, delta, at_most[module.name], weighted)

        pairs = deltas(self._base, self._extended, modules, device)
        at_once = 1 if weighted is not None else matrices_at_once(device)
        return in_order(pairs, work, lambda item: math.prod(item[0].shape), device, at_once)

    def _groups(
        self, modules: list[Module], bar: progress.Bar
    ) -> Iterator[tuple[WeightedNorm | None, list[Module]]]:
        """The modules with the norm of their inputs, None for the plain norm."""
        if self._calibration is None:
            yield None, modules
            return
        inside = [m for m in modules if m.layer is not None]
        yield None, [m for m in modules if m.layer is None]
        yield from input_norms(self._extended, self._calibration, inside, self._device, bar)

    def _decompose(
        self, module: Module, delta: Delta, at_most: int, weighted: WeightedNorm | None
    ) -> Decomposition:
        shape, squared = list(module.shape), delta.squared_norm
        norm = math.sqrt(squared)
        relative = math.sqrt(squared / delta.squared_base) if delta.squared_base else 0.0
        if squared == 0.0:
            return Decomposition(
                shape=shape, delta_norm=norm, relative_delta=relative, spectrum=[], upper=[],
                above=0,
            )  # fmt: skip
        matrix, half, inputs = delta.matrix, delta.half, None
        if weighted is not None:
            matrix, half, inputs = weighted.product(delta.matrix), None, weighted.spectrum
            squared = squared_frobenius(matrix)
        svd, floor = decompose(
            matrix, self._plan.rule, delta.noise,
            at_most=at_most, at_least=_SPARE if self._plan.layout == "portable" else 0,
            seed=self._seed, exact=self._exact,
            half=half, squared_norm=squared, inputs=inputs,
        )  # fmt: skip
        parts: list[float] = []
        if weighted is None:
            self._save(module, dict(zip("BA", svd.factors(), strict=True)))
        else:
            svd = weighted.certified(svd, norm)
            parts = self._save_weighted(module, delta.matrix, svd, weighted)
        return Decomposition(
            shape=shape,
            delta_norm=norm,
            relative_delta=relative,
            spectrum=svd.S.tolist(),
            upper=svd.bounds.upper.tolist(),
            resolution=svd.bounds.resolution,
            squared_tail=svd.bounds.squared_tail,
            shortened=svd.bounds.shortened,
            perturbation=svd.bounds.perturbation,
            weighted_norm=None if weighted is None else math.sqrt(squared),
            inputs=[] if inputs is None else list(inputs.leading),
            squared_parts=parts,
            above=floor.above,
            rank=min(rank_by_rule(svd, floor, self._plan.rule, module.shape), svd.rank),
            noise_variance=floor.variance,
            noise_edge=floor.edge,
            squared_residual=svd.squared_error(),
            method=svd.method,
            passes=svd.passes,
        )

    def _save_weighted(
        self, module: Module, delta: Tensor, svd: LowRank, norm: WeightedNorm
    ) -> list[float]:
        """Spool the factors, and what `weighted_rounding` needs when C is no longer in memory.
        Returns the parts of `WeightedFactors`."""
        factors = weighted_factors(delta, svd.U)
        b, a = factors.b.float(), factors.a.float()
        self._save(module, {
            "B": b, "A": a, "exact_B": factors.b, "weighted_A": norm.product(factors.a),
            "stored_A": norm.product(a.to(self._dtype)),
        })  # fmt: skip
        return factors.squared_parts.tolist()

    def _save(self, module: Module, tensors: dict[str, Tensor]) -> None:
        stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        plan = [PlannedTensor.like(name, tensor) for name, tensor in stored.items()]
        write_safetensors(self._spooled(module), stored.items(), plan)

    def _spooled(self, module: Module) -> Path:
        return self._staging.spool / f"{module.name}.safetensors"


def _unit(module: Module, at_most: Mapping[str, int]) -> str:
    """The key of a module's entry in the journal."""
    return f"{module.name} <= {at_most[module.name]}"
