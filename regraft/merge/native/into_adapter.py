"""Merging adapters on one base into an adapter (`--as-adapter`).

Task arithmetic needs no dense matrix: sum c_i B_i A_i = [c_1 B_1 ...] [A_1; ...], which two QR
factorisations and one small SVD bring to its own rank, exactly but for rounding. The result of
every other method has full rank: it is merged densely, one matrix at a time, and cut by a truncated
SVD to the summed rank of the inputs, whose error is in the record.

With `space: core` in the recipe, the methods of `CORE_METHODS` merge in the joint core space of the
adapters (see `lowrank.core_space`), in matrices as large as the summed rank, and nothing is cut.
Iso-C depends on singular values and vectors alone and gives what it gives densely. So does
TSV-Merge of adapters of one rank that share no directions; else its 1 / N is of the core's
directions, as in the paper. TIES trims and elects entries of another basis: it is another method
than dense TIES.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regraft import progress
from regraft.adapters.folder import WEIGHTS
from regraft.adapters.serving import PORTABLE_CAP
from regraft.adapters.writer import AdapterModule, totals_of, write_adapter, write_adapter_record
from regraft.checkpoint.write.disk import need_space
from regraft.checkpoint.write.staging import Staging
from regraft.lowrank.core_space import core_space
from regraft.lowrank.svd import truncated_svd
from regraft.merge.inputs.inputs import Input, Inputs
from regraft.merge.methods.registry import merge_tensors
from regraft.merge.native.adapter_plan import AdapterPlan
from regraft.merge.native.plan import Output, Plan
from regraft.merge.native.stream import Tally, merged
from regraft.merge.recipe.recipe import Recipe
from regraft.records import (
    AdapterRecord,
    ContextChange,
    MergeSource,
    ModelRecord,
    ModuleRecord,
    Plain,
    derive_seed,
    versions,
)
from regraft.rope import ContextSpec
from regraft.write import library_writing

_ROUNDING = 1e-7  # share of the largest singular value that is rounding in float32


@dataclass(frozen=True)
class Merged:
    """One module's merged change: B (m, r) and A (r, n), float32. norm: of the change; error: of
    B A, relative to it."""

    b: Tensor
    a: Tensor
    norm: float
    error: float


CORE_METHODS = ("iso_c", "task_arithmetic", "ties", "tsv_merge")


def check(recipe: Recipe, inputs: Inputs, plan: Plan) -> None:
    """Raise InputError, with the recipe's line, where the result is not an adapter of factors."""
    if recipe.body.space == "core" and plan.method.name not in CORE_METHODS:
        raise recipe.error(
            ("space",), f"{plan.method.name} does not merge in core space; "
            f"{', '.join(CORE_METHODS)} do.",
        )  # fmt: skip
    base = recipe.body.base_model
    if plan.method.base == "ignored" or base is None or inputs[base].adapter is not None:
        raise recipe.error(
            ("base_model",), "--as-adapter needs a method that adds changes to a base_model "
            "without adapter.",
        )  # fmt: skip
    for (ref, where), one in zip(recipe.references(), inputs, strict=True):
        if ref == base:
            continue
        if one.adapter is None or one.checkpoint is not inputs[base].checkpoint:
            raise recipe.error(
                where, f"{one} is no adapter on {base}, so --as-adapter cannot merge it; leave "
                "--as-adapter out, or extract an adapter first.",
            )  # fmt: skip
        if one.adapter.differences or one.adapter.replaced:
            raise recipe.error(
                where, f"{one} changes whole tensors besides its factors, which an adapter of "
                "factors cannot hold; leave --as-adapter out.",
            )  # fmt: skip


def write(
    recipe: Recipe,
    inputs: Inputs,
    plan: Plan,
    size: AdapterPlan,
    context: ContextSpec,
    staging: Staging,
    *,
    seed: int,
    device: torch.device,
    arguments: dict[str, Plain],
) -> AdapterRecord:
    """Merge, and write the adapter without its card to the staging folder. Returns its record.

    size: the plan of the adapter. Raises OutputError where the disk cannot hold it; where its
    factors may turn out smaller, there is a warning.
    """
    assert recipe.body.base_model is not None
    base = inputs[recipe.body.base_model]
    changed = plan.changed
    scale = 1.0 if recipe.body.scale is None else recipe.body.scale
    spool = _Spool(staging)
    sizes = {
        str(spool.path(out.name)): 4 * sum(out.shape) * size.ranks[out.name] for out in changed
    }
    need_space(staging.folder, {**sizes, WEIGHTS: size.weight_bytes}, at_most=not size.dense)
    with progress.bar("Merging", len(changed)) as bar:
        for output in changed:
            if not spool.has(output.name):
                if recipe.body.space == "core":
                    spool.put(output.name, _in_core_space(output, plan, scale))
                elif not size.dense:
                    spool.put(output.name, _added(output, scale))
                else:
                    spool.put(output.name, _extracted(output, plan, scale, seed, device))
            bar.advance()
    outputs = [out for out in changed if spool.figures(out.name).rank]
    if not outputs:
        raise recipe.error((), "the merged change is zero, so there is no adapter to write.")
    modules = [_module(out, base, spool.figures(out.name).rank) for out in outputs]
    highest = max(module.rank for module in modules)
    uniform_rank = highest if highest <= PORTABLE_CAP else None
    roundings = write_adapter(
        staging.folder,
        base.checkpoint,
        base.role_of,
        modules,
        ((piece.b, piece.a) for piece in map(spool.get, (out.name for out in outputs))),
        dtype=size.dtype,
        uniform_rank=uniform_rank,
    )
    records = {}
    for out, module in zip(outputs, modules, strict=True):
        piece = spool.figures(out.name)
        lost = math.sqrt(roundings[module.name]) / piece.norm
        records[module.name] = ModuleRecord(
            shape=list(module.shape),
            rank=module.rank,
            delta_norm=piece.norm,
            error=math.hypot(piece.error, lost),
            rounding_error=lost,
            parameters=out.params,
        )
    record = AdapterRecord(
        made_by="merge",
        base=ModelRecord(
            name=base.checkpoint.name,
            revision=base.checkpoint.revision,
            fingerprint=base.checkpoint.fingerprint(),
            model_type=base.checkpoint.config.get("model_type"),
        ),
        extended=ModelRecord(
            name=f"a merge of {', '.join(map(str, inputs))}",
            revision=None,
            fingerprint=f"merge:{staging.job}",
        ),
        context=ContextChange(base=base.contexts[0].to_record(), extended=context.to_record()),
        layout="portable" if uniform_rank else "compact",
        differences=[],
        modules=records,
        totals=totals_of(records, uniform_rank=uniform_rank, dtype=size.dtype),
        arguments=arguments,
        versions=versions(),
        merge=MergeSource(
            method=plan.method.name,
            recipe=recipe.document.text,
            inputs=[one.adapter.name for one in inputs if one.adapter is not None],
            exact=not size.dense,
            space=recipe.body.space,
        ),
    )
    write_adapter_record(staging.folder, record)
    return record


@dataclass(frozen=True)
class _Figures:
    """What the journal holds of a merged module; see `Merged`."""

    rank: int
    norm: float
    error: float


class _Spool:
    """Merged modules on disk, until the rank of all is known. A resumed run reads them again."""

    def __init__(self, staging: Staging) -> None:
        self._staging, self._folder = staging, staging.spool

    def has(self, name: str) -> bool:
        return self._staging.done(f"factors:{name}") is not None and self.path(name).is_file()

    def put(self, name: str, piece: Merged) -> None:
        part = self.path(name).with_suffix(".part")
        with library_writing(part):
            save_file({"a": piece.a.contiguous().cpu(), "b": piece.b.contiguous().cpu()}, part)
        part.replace(self.path(name))
        figures = _Figures(len(piece.a), piece.norm, piece.error)
        self._staging.record(f"factors:{name}", **asdict(figures))

    def figures(self, name: str) -> _Figures:
        """The figures of a module that is on disk."""
        return _Figures(**self._staging.done(f"factors:{name}") or {})

    def get(self, name: str) -> Merged:
        stored, figures = load_file(self.path(name)), self.figures(name)
        return Merged(stored["b"], stored["a"], figures.norm, figures.error)

    def path(self, name: str) -> Path:
        """The file of a module."""
        return self._folder / f"{name}.safetensors"


def _module(output: Output, base: Input, rank: int) -> AdapterModule:
    name = base.role_of[output.tensors[-1][1]].module
    rows, columns = output.shape
    kind: Literal["linear", "embedding"] = "embedding" if output.kind == "embedding" else "linear"
    return AdapterModule(name, kind, (rows, columns), rank)


def _added(output: Output, scale: float) -> Merged:
    """sum c_i B_i A_i as factors of its own rank."""
    weights = output.params["weight"]
    total = math.fsum(weights) if output.params["normalize"] else 0.0
    scale *= output.params["lambda"] / (total or 1.0)
    left, right = [], []
    for (one, name), weight in zip(output.inputs, weights, strict=True):
        if name in one.changes and one.adapter is not None:
            b, a = one.changes[name].factors(one.adapter)
            left.append(b.double() * (weight * scale))
            right.append(a.double())
    q, r = torch.linalg.qr(torch.cat(left, 1))
    p, s = torch.linalg.qr(torch.cat(right, 0).T)
    u, values, vt = torch.linalg.svd(r @ s.T)
    floor = float(values[0]) * _ROUNDING if len(values) else 0.0
    rank = int((values > floor).sum())
    root = values[:rank].sqrt()
    norm = float(torch.linalg.vector_norm(values))
    b, a = (q @ u[:, :rank]) * root, root[:, None] * (vt[:rank] @ p.T)
    return Merged(b.float(), a.float(), norm, 0.0)


def _in_core_space(output: Output, plan: Plan, scale: float) -> Merged:
    """The method's merge of the inputs' cores, as factors. An input that does not change the module
    has a core of zeros."""
    present = [
        (i, one.changes[name].factors(one.adapter))
        for i, (one, name) in enumerate(output.inputs)
        if name in one.changes and one.adapter is not None
    ]
    space = core_space([factors for _, factors in present])
    cores = [torch.zeros_like(space.cores[0]) for _ in output.inputs]
    for (i, _), core in zip(present, space.cores, strict=True):
        cores[i] = core
    merged_core = merge_tensors(
        plan.method.name, cores, torch.zeros_like(cores[0]), output.params, dtype=torch.float64
    )
    b, a, values = space.factors(merged_core * scale, least=_ROUNDING)
    return Merged(b.float(), a.float(), float(torch.linalg.vector_norm(values)), 0.0)


def _extracted(output: Output, plan: Plan, scale: float, seed: int, device: torch.device) -> Merged:
    """The densely merged change, cut to the summed rank of the inputs."""
    assert output.base is not None
    exact = replace(output, dtype=torch.float32)
    own = derive_seed(seed, output.name)
    blocks = merged(exact, plan.method, own, scale, device, Tally())
    delta = torch.cat(list(blocks))
    one, name = output.base
    delta -= one.rows(name, slice(0, len(delta)), torch.float32, torch.device("cpu"))
    one.release_change(name)
    svd = truncated_svd(delta, min(output.adapter_rank, PORTABLE_CAP), seed=own)
    b, a = svd.factors()
    return Merged(b, a, math.sqrt(svd.squared_norm), svd.error())
