"""Writes every adapter folder, whether it was extracted, trained or merged.

The caller gives factors in the orientation of the stored weight (out, in); the writer turns them
into PEFT's keys and shapes, casts and pads them, and measures the rounding error. Padding with
zeros is exact and gives all modules one rank, which servers need: they ignore rank and alpha
patterns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from regraft.adapters import lineage
from regraft.adapters.folder import CONFIG, DIFFERENCES, LINEAGE, PREFIX, RECORD, WEIGHTS
from regraft.adapters.reader import Adapter
from regraft.adapters.serving import PORTABLE_CAP, vllm_problems
from regraft.checkpoint.dtypes import dtype_name
from regraft.checkpoint.hf.roles import Role
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.shard_plan import PlannedTensor, write_safetensors
from regraft.errors import InputError
from regraft.input_files import JsonObject
from regraft.lowrank.low_rank import rounding_error
from regraft.records import AdapterRecord, AdapterTotals, ModuleRecord, write_record
from regraft.write import write_json


@dataclass(frozen=True)
class AdapterModule:
    """One module to write. shape: (out, in) of the base's weight; rank: of its factors."""

    name: str
    kind: Literal["linear", "embedding"]
    shape: tuple[int, int]
    rank: int

    def keys(self) -> tuple[str, str]:
        """The names of A and B in adapter_model.safetensors."""
        if self.kind == "embedding":
            stem = f"{PREFIX}{self.name}.lora_embedding_"
            return f"{stem}A", f"{stem}B"
        return f"{PREFIX}{self.name}.lora_A.weight", f"{PREFIX}{self.name}.lora_B.weight"

    def planned(self, rank: int, dtype: torch.dtype) -> list[PlannedTensor]:
        """A and B as stored at `rank`."""
        rows, columns = self.shape if self.kind == "linear" else self.shape[::-1]
        key_a, key_b = self.keys()
        return [
            PlannedTensor(key_a, (rank, columns), dtype),
            PlannedTensor(key_b, (rows, rank), dtype),
        ]


def write_adapter(
    folder: Path,
    base: Checkpoint,
    roles: Mapping[str, Role],
    modules: Sequence[AdapterModule],
    factors: Iterable[tuple[Tensor, Tensor]],
    *,
    dtype: torch.dtype,
    uniform_rank: int | None,
    base_name: str | None = None,
    differences: tuple[list[PlannedTensor], Iterable[tuple[str, Tensor]]] = ([], ()),
) -> dict[str, float]:
    """Write all files but regraft.json and the card. Returns module -> ||B A - stored B A||_F^2.

    factors: (B (m, r), A (r, n)) of each module, in order, in the orientation of the stored weight
        and in float32 or wider. m and n may be less than the weight's, for tokens that the
        extended model lacks; the change of their rows is zero.
    uniform_rank: the one rank to pad all modules to; None writes rank and alpha patterns.
    base_name: the base in PEFT's config, by default the checkpoint's name.
    differences: the plan and the dense tensors of layout `exact`.

    Raises InputError where a factor is too large for `dtype`.
    """
    projections = {
        role.module for role in roles.values() if role.kind in ("projection", "embedding", "head")
    }
    config = peft_config(
        modules, projections, uniform_rank=uniform_rank,
        base=base_name or base.name, revision=base.revision,
    )  # fmt: skip
    write_json(folder / CONFIG, config)
    roundings: dict[str, float] = {}
    _write(
        folder / WEIGHTS,
        _stored(modules, factors, dtype, uniform_rank, roundings),
        [p for module in modules for p in module.planned(uniform_rank or module.rank, dtype)],
    )
    samples = sorted(lineage.sketch(base).items())
    _write(
        folder / LINEAGE,
        samples,
        [PlannedTensor.like(name, values) for name, values in samples],
        {"roles": json.dumps({name: asdict(role) for name, role in roles.items()})},
    )
    planned, dense = differences
    if planned:
        _write(folder / DIFFERENCES, dense, planned)
    if uniform_rank is not None and uniform_rank <= PORTABLE_CAP:
        _check_portable(folder, base.name)
    return roundings


def _check_portable(folder: Path, name: str) -> None:
    """Raise ValueError where vLLM would not load the adapter; it loads every portable one."""
    if problems := vllm_problems(Adapter(folder, f"the adapter of {name}").facts):
        raise ValueError(f"vLLM would not load the adapter in {folder}: {'; '.join(problems)}")


def write_adapter_record(folder: Path, record: AdapterRecord) -> None:
    """Write regraft.json. Raises OutputError naming the file."""
    write_record(folder / RECORD, record)


def totals_of(
    modules: Mapping[str, ModuleRecord],
    *,
    uniform_rank: int | None,
    dtype: torch.dtype,
    error: float | None = None,
    **extraction: Any,
) -> AdapterTotals:
    """The totals over all modules.

    error: by default that of the modules. extraction: fields of `AdapterTotals` that only an
    extraction has.
    """
    ranks = [module.rank for module in modules.values()]
    squared = sum(module.delta_norm**2 for module in modules.values())
    missed = sum((module.error * module.delta_norm) ** 2 for module in modules.values())
    stored = sum(sum(m.shape) * (uniform_rank or m.rank) for m in modules.values())
    if error is None:
        error = (missed / squared) ** 0.5 if squared else 0.0
    return AdapterTotals(
        modules=len(modules),
        rank_min=min(ranks),
        rank_max=max(ranks),
        rank_stored=uniform_rank,
        parameters=stored,
        bytes=stored * dtype.itemsize,
        delta_norm=squared**0.5,
        error=error,
        **extraction,
    )


def peft_config(
    modules: Sequence[AdapterModule],
    all_modules: Iterable[str],
    *,
    uniform_rank: int | None,
    base: str,
    revision: str | None,
) -> JsonObject:
    """The content of adapter_config.json, with one rank for all or rank and alpha patterns.

    alpha = r, so the scale is 1. Targets are leaf names where every module of that leaf is in the
    adapter, full names otherwise, so that no program makes empty factors for an unchanged module.
    """
    names = {module.name for module in modules}
    leaves: dict[str, set[str]] = {}
    for name in {*all_modules, *names}:
        leaves.setdefault(name.rpartition(".")[2], set()).add(name)
    targets = [
        target
        for leaf, members in sorted(leaves.items())
        for target in ([leaf] if members <= names else sorted(members & names))
    ]
    rank = uniform_rank or max(module.rank for module in modules)
    others = {m.name: m.rank for m in modules if m.rank != rank} if uniform_rank is None else {}
    pattern = {re.escape(name): own for name, own in sorted(others.items())}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": targets,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def _stored(
    modules: Sequence[AdapterModule],
    factors: Iterable[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
    uniform_rank: int | None,
    roundings: dict[str, float],
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of adapter_model.safetensors; adds each module's squared error to `roundings`."""
    for module, (b, a) in zip(modules, factors, strict=True):
        stored_b, stored_a = b.to(dtype), a.to(dtype)
        if not (torch.isfinite(stored_a).all() and torch.isfinite(stored_b).all()):
            raise InputError(
                f"The factors of '{module.name}' hold NaN or numbers too large for "
                f"{dtype_name(dtype)}; choose a wider dtype."
            )
        roundings[module.name] = rounding_error((b, a), (stored_b, stored_a))
        (m, n), rank = module.shape, uniform_rank or module.rank
        stored_b = _padded(stored_b, m, rank)
        stored_a = _padded(stored_a, rank, n)
        if module.kind == "embedding":  # PEFT stores the change of an embedding transposed
            stored_b, stored_a = stored_a.T, stored_b.T
        key_a, key_b = module.keys()
        yield key_a, stored_a.contiguous()
        yield key_b, stored_b.contiguous()


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    below, right = rows - matrix.shape[0], columns - matrix.shape[1]
    return torch.nn.functional.pad(matrix, (0, right, 0, below)) if below or right else matrix


def _write(
    path: Path,
    tensors: Iterable[tuple[str, Tensor]],
    planned: list[PlannedTensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    write_safetensors(path, iter(tensors), planned, {"format": "pt", **(metadata or {})})
