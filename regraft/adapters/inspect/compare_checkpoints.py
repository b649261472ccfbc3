"""Comparison of two checkpoints: relation, contexts, exact figures of their difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch

from regraft import progress
from regraft.adapters import lineage
from regraft.adapters.extract.deltas import Delta, compare, deltas
from regraft.adapters.extract.select import Module, shared_shape
from regraft.adapters.inspect.comparisons import (
    CheckpointComparison,
    ComparedCheckpoint,
    ComparedContexts,
    MatrixChange,
    Norms,
    TensorChange,
    TotalChange,
)
from regraft.adapters.inspect.describe_checkpoint import context_or_reason
from regraft.adapters.inspect.figures import mean
from regraft.checkpoint.dtypes import FLOAT_DTYPES
from regraft.checkpoint.hf.roles import Role, tensor_roles
from regraft.checkpoint.read.source import Checkpoint
from regraft.lowrank.effective_rank import LEADING, effective_rank
from regraft.lowrank.noise import noise_floor
from regraft.lowrank.svd import truncated_svd


def compare_checkpoints(
    first: Checkpoint, second: Checkpoint, device: torch.device
) -> CheckpointComparison:
    """Relation, contexts, and exact figures of second - first per tensor, role, layer and leaf.

    Every shared weight is read once. Effective rank and share above the noise of rounding are
    figures of matrices only.
    """
    role_of = tensor_roles(first.config, first.tensors)
    relation = lineage.relate(lineage.sketch(first), lineage.sketch(second), role_of)
    names, not_comparable = _comparable(first, second, role_of)
    changes = _measure(first, second, names, role_of, device)
    return CheckpointComparison(
        first=_identity(first),
        second=_identity(second),
        relation=relation,
        context=_contexts(first, second),
        total=_total(changes.values()),
        roles=_grouped(changes, lambda change: change.role),
        layers=_grouped(changes, lambda change: change.layer),
        leaves=_grouped(
            changes, lambda change: change.leaf if isinstance(change, MatrixChange) else None
        ),
        only_in_first=[name for name in first.tensors if name not in second.tensors],
        only_in_second=[name for name in second.tensors if name not in first.tensors],
        not_comparable=not_comparable,
        rows_added={
            name: second.tensors[name].shape[0] - first.tensors[name].shape[0]
            for name in names
            if second.tensors[name].shape != first.tensors[name].shape
        },
        tensors=changes,
    )


def _identity(checkpoint: Checkpoint) -> ComparedCheckpoint:
    return ComparedCheckpoint(
        name=checkpoint.name,
        revision=checkpoint.revision,
        model_type=checkpoint.config.get("model_type"),
        bytes=checkpoint.total_bytes,
    )


def _contexts(first: Checkpoint, second: Checkpoint) -> ComparedContexts:
    (one, one_text), (other, other_text) = context_or_reason(first), context_or_reason(second)
    return ComparedContexts(
        first=one.to_record() if one else None,
        second=other.to_record() if other else None,
        first_text=one_text,
        second_text=other_text,
        same=one == other,
    )


def _comparable(
    first: Checkpoint, second: Checkpoint, role_of: Mapping[str, Role]
) -> tuple[list[str], dict[str, str]]:
    """The tensors whose entries can be subtracted, and {other shared tensor: reason}."""
    names, not_comparable = [], {}
    for name, info in first.tensors.items():
        other = second.tensors.get(name)
        if other is None:
            continue
        rows_only = (
            role_of[name].kind in ("embedding", "head") and info.shape[1:] == other.shape[1:]
        )
        if not (info.shape == other.shape or rows_only):
            not_comparable[name] = f"{list(info.shape)} and {list(other.shape)}"
        elif info.dtype not in FLOAT_DTYPES or other.dtype not in FLOAT_DTYPES:
            not_comparable[name] = f"{info.dtype} and {other.dtype}"
        else:
            names.append(name)
    return names, not_comparable


def _measure(
    first: Checkpoint,
    second: Checkpoint,
    names: list[str],
    role_of: Mapping[str, Role],
    device: torch.device,
) -> dict[str, TensorChange]:
    """The change of each tensor, in the order of `names`."""
    matrices = []
    for name in names:
        role, shape = role_of[name], shared_shape(first, second, name)
        if role.kind in ("projection", "embedding", "head") and len(shape) == 2 and min(shape):
            matrices.append(Module(role.module, name, "linear", (shape[0], shape[1])))
    others = sorted(set(names) - {module.tensor for module in matrices})
    changes: dict[str, TensorChange] = {}
    work = sum(math.prod(first.tensors[name].shape) for name in names)
    with progress.bar("Comparing", max(1, work)) as bar:
        for module, delta in deltas(first, second, matrices, device):
            sums = [delta.squared_norm, delta.squared_base, delta.dot]
            change = _change(role_of[module.tensor], module.shape, *sums)
            changes[module.tensor] = _matrix_change(change, delta)
            bar.advance(math.prod(module.shape), text=module.name)
        for name in others:
            shape = shared_shape(first, second, name)
            sums = compare(first, second, name)
            changes[name] = _change(role_of[name], shape, *sums)
            bar.advance(math.prod(shape), text=name)
    return {name: changes[name] for name in names}


def _change(role: Role, shape: tuple[int, ...], dd: float, bb: float, bd: float) -> TensorChange:
    """The change of a tensor from ||d||^2, ||first||^2 and <first, d>."""
    ee = max(bb + 2 * bd + dd, 0.0)
    return TensorChange(
        role=role.kind, layer=role.layer, leaf=role.leaf, shape=list(shape),
        **vars(_norms(dd, bb, ee, bb + bd)),
    )  # fmt: skip


def _norms(dd: float, bb: float, ee: float, be: float) -> Norms:
    """From ||d||^2, ||first||^2, ||second||^2 and <first, second>."""
    return Norms(
        delta_norm=math.sqrt(dd),
        norm=math.sqrt(bb),
        other_norm=math.sqrt(ee),
        relative_delta=math.sqrt(dd / bb) if bb else (None if dd else 0.0),
        cosine=max(-1.0, min(1.0, be / math.sqrt(bb * ee))) if bb * ee else None,
        product=be,
    )


def _matrix_change(change: TensorChange, delta: Delta) -> MatrixChange:
    """The change of a matrix, with the figures of its singular values."""
    squared = delta.squared_norm
    if squared == 0:
        return MatrixChange(**vars(change), effective_rank=0.0, spectral_norm=0.0, above_noise=None)
    svd = truncated_svd(delta.matrix, LEADING, half=delta.half, squared_norm=squared, certify=False)
    m, n = delta.matrix.shape
    floor = noise_floor(svd.S, squared, (m, n), delta.noise)
    return MatrixChange(
        **vars(change),
        effective_rank=effective_rank(delta.matrix, svd.Vt, squared),
        spectral_norm=float(svd.S[0]),
        above_noise=max(0.0, 1 - m * n * floor.variance / squared),
    )


def _grouped(
    changes: Mapping[str, TensorChange], key: Callable[[TensorChange], str | int | None]
) -> dict[str, TotalChange]:
    """The totals of the changes with the same key, numbers in order; those without are left out."""
    groups: dict[str | int, list[TensorChange]] = {}
    for change in changes.values():
        if (value := key(change)) is not None:
            groups.setdefault(value, []).append(change)
    order = sorted(groups, key=lambda value: value if isinstance(value, int) else 0)
    return {str(value): _total(groups[value]) for value in order}


def _total(members: Iterable[TensorChange]) -> TotalChange:
    """The change of several tensors, as of their concatenation."""
    changes = list(members)
    dd = sum(change.delta_norm**2 for change in changes)
    bb = sum(change.norm**2 for change in changes)
    ee = sum(change.other_norm**2 for change in changes)
    matrices = [c for c in changes if isinstance(c, MatrixChange) and c.effective_rank]
    ranks = [change.effective_rank for change in matrices]
    energies = [(c.above_noise, c.delta_norm**2) for c in matrices if c.above_noise is not None]
    energy = sum(squared for _, squared in energies)
    return TotalChange(
        tensors=len(changes),
        changed=sum(change.delta_norm > 0 for change in changes),
        parameters=sum(math.prod(change.shape) for change in changes),
        **vars(_norms(dd, bb, ee, sum(change.product for change in changes))),
        effective_rank=mean(ranks) if ranks else None,
        effective_rank_min=min(ranks, default=None),
        effective_rank_max=max(ranks, default=None),
        above_noise=sum(share * squared for share, squared in energies) / energy
        if energy
        else None,
    )
