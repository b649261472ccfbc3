"""An adapter as a GGUF LoRA for llama.cpp.

llama.cpp adds (alpha / r) B A, with one alpha for the whole file and r from each tensor's shape.
Where all modules have one alpha, the file stores it; else (ranks with alphas of their own) alpha is
the largest rank and each B is multiplied by the rest of its scale. RoPE and context length are no
part of such a file: llama.cpp takes them from its flags.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from regraft.adapters.apply.match import Change, match_changes, target_roles
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.shard_plan import PlannedTensor
from regraft.errors import InputError
from regraft.export.content import Content, OutputTensor
from regraft.export.gguf_file import file_type
from regraft.export.llama import Names, permuted, shape_of
from regraft.markdown import last_name


@dataclass(frozen=True)
class LoraContent:
    """The contents of an adapter's GGUF file. rescaled: number of modules whose B is multiplied."""

    content: Content
    alpha: float
    rescaled: int


def adapter_content(lora: Adapter, base: Checkpoint, dtype: torch.dtype) -> LoraContent:
    """The contents of the GGUF file of an adapter of `base`, of which only headers are read.

    Raises InputError for what llama.cpp does not load (whole tensors, dense differences, the
    embedding), CheckpointError where the adapter does not fit the base.
    """
    shape = shape_of(base)
    _refuse_whole_tensors(lora)
    roles = target_roles(lora, base)
    changes = match_changes(lora, base, roles, 1.0).changes
    for change in changes.values():
        if change.role == "embedding" or (change.role == "head" and base.tied):
            raise _refused(lora, f"changes the embedding ('{change.key}')")
    names = Names(shape.layers)
    alpha, rescaled = _alpha(lora, changes)
    tensors: list[OutputTensor] = []
    for tensor, change in changes.items():
        module = roles[tensor].module
        target = names.of(f"{module}.weight")
        if target is None or change.role not in ("projection", "head"):
            raise _refused(lora, f"changes '{change.key}'")
        rank = lora.rank(change.key)
        rows, columns = base.tensors[tensor].shape
        if change.rows < rows:
            raise _refused(lora, f"changes {change.rows} of the {rows} rows of '{change.key}'")
        a = partial(_factor_a, lora, change)
        b = partial(_factor_b, lora, change, alpha / rank, shape.head_count(module))
        tensors.append(
            OutputTensor(PlannedTensor(f"{target}.lora_a", (rank, columns), dtype), tensor, a)
        )
        tensors.append(
            OutputTensor(PlannedTensor(f"{target}.lora_b", (rows, rank), dtype), tensor, b)
        )

    def describe(writer: Any) -> None:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        writer.add_name(last_name(lora.name))
        writer.add_file_type(file_type(dtype))

    return LoraContent(Content(tensors, describe), alpha, rescaled)


def _refuse_whole_tensors(lora: Adapter) -> None:
    if lora.replaced:
        raise _refused(lora, f"replaces whole tensors (modules_to_save: '{min(lora.replaced)}')")
    if lora.differences:
        raise _refused(lora, f"has dense differences (layout exact: '{lora.differences[0]}')")


def _refused(lora: Adapter, what: str) -> InputError:
    return InputError(
        f"{lora.name} {what}, which llama.cpp does not load from a LoRA; write a model with "
        "`regraft apply` and export that."
    )


def _alpha(lora: Adapter, changes: dict[str, Change]) -> tuple[float, int]:
    """(alpha of the file, number of modules whose B changes): their own alpha if all have one."""
    alphas = {
        key: lora.modules[key].scaling * lora.rank(key)
        for key in (change.key for change in changes.values())
    }
    first = next(iter(alphas.values()))
    if first and all(math.isclose(alpha, first, rel_tol=1e-12) for alpha in alphas.values()):
        return first, 0
    largest = float(max(lora.rank(key) for key in alphas))
    return largest, sum(not math.isclose(alpha, largest) for alpha in alphas.values())


def _factor_a(lora: Adapter, change: Change) -> Iterator[torch.Tensor]:
    yield change.factors(lora)[1]


def _factor_b(
    lora: Adapter, change: Change, scaling: float, heads: int | None
) -> Iterator[torch.Tensor]:
    """B without the scaling that llama.cpp applies."""
    b = change.factors(lora)[0] / scaling
    yield permuted(b, heads) if heads is not None else b
