"""(base, extended) -> adapter: every projection's delta as a certified low-rank pair.

Tensors are streamed one at a time through two reused buffers (the float32 delta and its bfloat16
shadow), so peak memory depends on the largest projection. Factors are spooled as they are made;
ranks that depend on all modules (a byte budget, one uniform rank) are settled at the end, the
adapter is assembled, read back with PEFT and published by rename.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from regraft import progress
from regraft.adapters import lineage
from regraft.adapters import reader as format
from regraft.adapters.extract import card, evidence
from regraft.adapters.extract.deltas import Delta, compare, deltas, difference, difference_dtype
from regraft.adapters.extract.select import (
    Module,
    Plan,
    check_lineage,
    context_of,
    make_plan,
    roles_of,
    shared_shape,
)
from regraft.adapters.peft_check import peft_deltas
from regraft.checkpoint.layout import Planned, write_safetensors
from regraft.checkpoint.roles import Role
from regraft.checkpoint.source import Checkpoint
from regraft.checkpoint.staging import Staging
from regraft.device import full_precision, pick_device
from regraft.errors import CheckpointError, InputError
from regraft.job import Job
from regraft.lowrank.rank import break_even, decompose, parse_rule, share_budget, uniform_rank
from regraft.lowrank.svd import LowRank, rounding_error
from regraft.units import parse_bytes
from regraft.write import write_json

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@full_precision()
def extract_lora(
    base: str | Path,
    extended: str | Path,
    out: str | Path,
    *,
    rank: int | str | None = None,
    energy: float | None = None,
    budget: str | int | None = None,
    layout: format.Layout = "portable",
    modules: str = "all-linear",
    dtype: str = "bfloat16",
    exact: bool = False,
    verify: bool = True,
    full_fingerprint: bool = False,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write the adapter folder `out` that turns `base` into (nearly) `extended`; its record.

    rank, energy, budget: see `regraft.lowrank.rank`; none of them: rank 64. layout: 'portable'
    (one zero-padded rank, read correctly by PEFT, vLLM, SGLang and llama.cpp), 'compact' (a rank
    per module, PEFT only) or 'exact' (compact, plus the dense differences of everything else).
    modules: 'all-linear', 'attention', 'mlp', leaf names or regexes of module names, by commas.
    exact: LAPACK's SVD instead of the certified randomised one. force: take checkpoints that look
    swapped or unrelated. dry_run: only check and return the plan.

    Raises CheckpointError (broken or mismatched checkpoints, NaN), LineageError (strangers,
    swapped), InputError (arguments), OutputError (disk).
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype '{dtype}' is not one of {', '.join(DTYPES)}.")
    if layout not in ("portable", "compact", "exact"):
        raise InputError(f"--layout '{layout}' is not one of portable, compact, exact.")
    cap = format.PORTABLE_CAP if layout == "portable" else None
    if rank is None and energy is None and budget is None:
        rank = 64
    rule = parse_rule(rank, energy, parse_bytes(budget) if budget is not None else None, cap)
    where = pick_device(device)
    job = Job(out, inputs=[base, extended], overwrite=overwrite, resume=resume)
    with Checkpoint.open(base) as b, Checkpoint.open(extended) as e:
        role_of = roles_of(b)
        contexts = context_of(b), context_of(e)
        plan = make_plan(b, e, role_of, rule, layout, modules, DTYPES[dtype])
        relation = check_lineage(b, e, role_of, contexts, force)
        arguments = {
            "rank": rank, "energy": energy, "budget": budget, "layout": layout,
            "modules": modules, "dtype": dtype, "exact": exact, "seed": seed,
        }  # fmt: skip
        prints = (
            b.fingerprint(full=full_fingerprint),
            e.fingerprint(full=full_fingerprint),
        )
        record = evidence.header(b, e, prints, contexts, relation, plan, arguments)
        for note in plan.notes:
            progress.warn(note)
        if dry_run:
            return {**record, "plan": evidence.plan_json(plan)}
        with job.start(record, where.type) as staging:
            run = _Run(b, e, plan, staging, where, DTYPES[dtype], seed, exact)
            run.decompose_all()
            run.measure_rest(role_of)
            with progress.stage("Writing the adapter"):
                record |= run.assemble(role_of)
            write_json(staging.folder / format.RECORD, record)
            with progress.stage("Writing the card"):
                card.write_adapter_card(staging.folder, record, evidence.summary(record))
            if verify:
                worst = run.verify_with_peft()
                progress.note(f"PEFT loads it; largest deviation from what was asked {worst:.1e}")
            staging.publish()
    return record


class _Run:
    def __init__(
        self,
        b: Checkpoint,
        e: Checkpoint,
        plan: Plan,
        staging: Staging,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        exact: bool,
    ) -> None:
        self.b, self.e, self.plan, self.staging = b, e, plan, staging
        self.device, self.dtype, self.seed, self.exact = device, dtype, seed, exact
        self.facts: dict[str, dict[str, Any]] = {}
        self.rest: dict[str, dict[str, Any]] = {}
        self.ranks: dict[str, int] = {}

    def decompose_all(self) -> None:
        """Spool the factors of every module, at the most rank it can get."""
        at_most = self._budget_ceiling()
        self._pass(at_most)
        if self.plan.rule.budget is None:
            self.ranks = {name: len(fact["spectrum"]) for name, fact in self.facts.items()}
            return
        while True:
            spectra = {
                name: (fact["spectrum"][: fact["above"]], tuple(fact["shape"]))
                for name, fact in self.facts.items()
            }
            self.ranks = share_budget(spectra, self.plan.rule.budget, self.dtype.itemsize)
            starved = {
                name
                for name, rank in self.ranks.items()
                if rank == at_most[name] == len(self.facts[name]["spectrum"])
                and rank < break_even(*self.facts[name]["shape"])
            }
            if not starved:
                return
            for name in starved:
                at_most[name] *= 2
            self._pass(at_most, starved)

    def _budget_ceiling(self) -> dict[str, int]:
        """Ranks to try first under a budget: four times the uniform share."""
        budget = self.plan.rule.budget
        if budget is None:
            return {module.name: min(module.shape) for module in self.plan.modules}
        shapes = [module.shape for module in self.plan.modules]
        share = uniform_rank(shapes, budget, self.dtype.itemsize)
        return {module.name: 4 * share for module in self.plan.modules}

    def _pass(self, at_most: Mapping[str, int], only: set[str] | None = None) -> None:
        modules = [m for m in self.plan.modules if only is None or m.name in only]
        work = sum(math.prod(m.shape) for m in modules)
        with progress.bar("Extracting", work) as bar:
            todo = []
            for module in modules:
                entry = self.staging.done(self._unit(module, at_most))
                if entry is not None and self._spooled(module).is_file():
                    self.facts[module.name] = entry
                    bar.advance(math.prod(module.shape))
                else:
                    todo.append(module)
            for module, delta in deltas(self.b, self.e, todo, self.device):
                fact = self._decompose(module, delta, at_most[module.name])
                self.facts[module.name] = fact
                self.staging.record(self._unit(module, at_most), **fact)
                bar.advance(math.prod(module.shape), text=module.name)

    def _unit(self, module: Module, at_most: Mapping[str, int]) -> str:
        return f"{module.name} <= {at_most[module.name]}"

    def _spooled(self, module: Module) -> Path:
        return self.staging.spool / f"{module.name}.safetensors"

    def _decompose(self, module: Module, delta: Delta, at_most: int) -> dict[str, Any]:
        fact: dict[str, Any] = {
            "shape": list(module.shape),
            "delta_norm": math.sqrt(delta.squared_norm),
            "relative_delta": math.sqrt(delta.squared_norm / delta.squared_base)
            if delta.squared_base
            else 0.0,
        }
        if delta.squared_norm == 0.0:
            return {**fact, "spectrum": [], "upper": [], "above": 0, "unchanged": True}
        svd, floor = decompose(
            delta.matrix, self.plan.rule, delta.noise,
            at_most=at_most, seed=module_seed(self.seed, module.name), exact=self.exact,
            half=delta.half, squared_norm=delta.squared_norm,
        )  # fmt: skip
        self._save(module, svd)
        return {**fact, **evidence.svd_facts(svd, floor, module.shape, delta.squared_norm)}

    def _save(self, module: Module, svd: LowRank) -> None:
        b, a = svd.factors()
        if module.kind == "embedding":  # PEFT stores an embedding's change transposed
            b, a = a.T, b.T
        factors = {"A": a.cpu(), "B": b.cpu()}
        plan = [Planned(side, tuple(part.shape), part.dtype) for side, part in factors.items()]
        write_safetensors(self._spooled(module), factors.items(), plan)

    def _load(self, module: Module, rank: int) -> tuple[Tensor, Tensor]:
        """The spooled (B, A) cut to `rank`."""
        with safe_open(str(self._spooled(module)), framework="pt") as file:
            return file.get_tensor("B")[:, :rank], file.get_tensor("A")[:rank]

    def measure_rest(self, role_of: Mapping[str, Role]) -> None:
        """Norms of what is not factorised; under layout `exact` also its dense difference."""
        with progress.bar("Measuring the rest", max(1, len(self.plan.rest))) as bar:
            for name in self.plan.rest:
                squares = compare(self.b, self.e, name)
                extra = self.e.tensors[name].shape[:1] != self.b.tensors[name].shape[:1]
                self.rest[name] = {
                    "role": role_of[name].kind,
                    "delta_norm": math.sqrt(squares[0]),
                    "relative_delta": math.sqrt(squares[0] / squares[1]) if squares[1] else None,
                    "rows_not_shared": self.e.tensors[name].shape[0] - self.b.tensors[name].shape[0]
                    if extra
                    else 0,
                }
                bar.advance()

    def assemble(self, role_of: Mapping[str, Role]) -> dict[str, Any]:
        """Write PEFT's files, the lineage sketch and, in `exact`, the differences; the record."""
        kept = [m for m in self.plan.modules if self.ranks.get(m.name, 0) > 0]
        if not kept:
            raise InputError(
                f"Nothing to extract: no chosen matrix of {self.e.name} differs from {self.b.name} "
                "above the noise of its storage; choose other --modules or --rank."
            )
        uniform = max(self.ranks[m.name] for m in kept) if self.plan.layout == "portable" else None
        factors = {
            m.name: format.Factors(m.name, m.kind, self.ranks[m.name])  # type: ignore[arg-type]
            for m in kept
        }
        folder = self.staging.folder
        config = format.peft_config(
            list(factors.values()),
            {
                role.module
                for role in role_of.values()
                if role.kind in ("projection", "embedding", "head")
            },
            uniform=uniform,
            base=self.b.name,
            revision=self.b.revision,
        )
        write_json(folder / format.CONFIG, config)
        roundings: dict[str, float] = {}
        self._write(
            format.WEIGHTS,
            self._stored_factors(kept, factors, uniform, roundings),
            [
                Planned(key, shape, self.dtype)
                for module in kept
                for key, shape in factors[module.name].stored(self._base_shape(module), uniform)
            ],
        )
        samples = sorted(lineage.sketch(self.b).items())
        self._write(
            format.LINEAGE,
            iter(samples),
            [Planned(n, tuple(t.shape), t.dtype) for n, t in samples],
            {"roles": json.dumps({name: asdict(role) for name, role in role_of.items()})},
        )
        differences = []
        if self.plan.layout == "exact":
            differences = [n for n, fact in self.rest.items() if fact["delta_norm"] > 0]
        if differences:
            shapes = {name: shared_shape(self.b, self.e, name) for name in differences}
            self._write(
                format.DIFFERENCES,
                ((name, difference(self.b, self.e, name, self.dtype)) for name in differences),
                [Planned(n, s, difference_dtype(s, self.dtype)) for n, s in shapes.items()],
            )
        return self._record(kept, roundings, differences, uniform)

    def _write(
        self,
        name: str,
        tensors: Iterator[tuple[str, Tensor]],
        plan: list[Planned],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        write_safetensors(
            self.staging.folder / name, tensors, plan, {"format": "pt", **(metadata or {})}
        )

    def _stored_factors(
        self,
        kept: list[Module],
        factors: Mapping[str, format.Factors],
        uniform: int | None,
        roundings: dict[str, float],
    ) -> Iterator[tuple[str, Tensor]]:
        for module in kept:
            rank = self.ranks[module.name]
            b, a = self._load(module, rank)
            b2, a2 = b.to(self.dtype), a.to(self.dtype)
            if not (torch.isfinite(a2).all() and torch.isfinite(b2).all()):
                raise InputError(
                    f"The factors of '{module.name}' do not fit {self.dtype}; give another --dtype."
                )
            roundings[module.name] = rounding_error((b, a), (b2, a2))
            if uniform is not None and rank < uniform:
                a2 = torch.cat([a2, a2.new_zeros(uniform - rank, a2.shape[1])])
                b2 = torch.cat([b2, b2.new_zeros(b2.shape[0], uniform - rank)], 1)
            missing = self._base_shape(module)[0] - module.shape[0]
            if missing and module.kind == "embedding":
                a2 = torch.cat([a2, a2.new_zeros(a2.shape[0], missing)], 1)
            elif missing:
                b2 = torch.cat([b2, b2.new_zeros(missing, b2.shape[1])])
            key_a, key_b = factors[module.name].keys()
            yield key_a, a2.contiguous()
            yield key_b, b2.contiguous()

    def _base_shape(self, module: Module) -> tuple[int, int]:
        """Of the base's tensor: tokens that the extended model lacks get a change of zero."""
        rows, columns = self.b.tensors[module.tensor].shape
        return rows, columns

    def _record(
        self,
        kept: list[Module],
        roundings: Mapping[str, float],
        differences: list[str],
        uniform: int | None,
    ) -> dict[str, Any]:
        modules: dict[str, dict[str, Any]] = {}
        for module in kept:
            fact, rank = self.facts[module.name], self.ranks[module.name]
            modules[module.name] = evidence.module_record(fact, rank, roundings[module.name])
        skipped = [m for m in self.plan.modules if self.ranks.get(m.name, 0) == 0]
        return {
            "totals": evidence.totals(
                modules, self.facts, self.rest, differences, uniform, self.dtype
            ),
            "modules": modules,
            "unchanged": [m.name for m in skipped if self.facts[m.name].get("unchanged")],
            "below_noise": [m.name for m in skipped if not self.facts[m.name].get("unchanged")],
            "not_captured": evidence.not_captured(self.rest, differences, modules, self.facts),
            "differences": differences,
        }

    def verify_with_peft(self) -> float:
        """Load the staged adapter with PEFT on an empty base of the real shapes, rebuild every
        delta with PEFT's own code, compare it with what was asked; the largest relative deviation
        beyond the rounding of the stored factors. Raises CheckpointError if they disagree."""
        kept = {m.name: m for m in self.plan.modules if self.ranks.get(m.name, 0) > 0}
        worst, seen = 0.0, set()
        with progress.bar("Checking with PEFT", len(kept)) as bar:
            for name, loaded in peft_deltas(self.b.config, self.staging.folder):
                module = kept[name]
                b, a = self._load(module, self.ranks[name])
                asked = (b @ a).T if module.kind == "embedding" else b @ a
                rows = asked.shape[0]
                loaded[:rows] -= asked
                off, norm = (
                    float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in (loaded, asked)
                )
                off /= norm
                allowed = 1.5 * 2 * torch.finfo(self.dtype).eps + 1e-5
                if not off <= allowed:
                    raise CheckpointError(
                        f"PEFT rebuilds '{name}' {off:.2%} away from what was extracted; the "
                        "installed PEFT reads this adapter differently, please report it."
                    )
                worst = max(worst, off)
                seen.add(name)
                bar.advance()
        if seen != set(kept):
            raise CheckpointError(
                f"PEFT leaves out {len(set(kept) - seen)} modules, '{min(set(kept) - seen)}' among "
                "them; the installed PEFT reads this adapter differently, please report it."
            )
        return worst


def module_seed(seed: int, name: str) -> int:
    """A seed of its own for every module, so that order and selection change nothing."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "little")
