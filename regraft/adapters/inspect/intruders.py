"""Intruder directions of every projection, of two checkpoints or of an adapter on a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from regraft import progress
from regraft.adapters.apply.match import match_changes, target_roles
from regraft.adapters.inspect.comparisons import (
    IntruderFigures,
    LeafIntruders,
    ModuleIntruders,
)
from regraft.adapters.inspect.figures import leaf_of
from regraft.adapters.reader import Adapter
from regraft.checkpoint.dtypes import FLOAT_DTYPES
from regraft.checkpoint.hf.roles import checkpoint_roles
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError
from regraft.lowrank.intruders import AGAINST, DIRECTIONS, THRESHOLD, closest_cosines

Pair = tuple[str, Tensor, Tensor]  # tensor name, weight before and after the change, float32


def checkpoint_intruders(
    first: Checkpoint, second: Checkpoint, device: torch.device
) -> IntruderFigures:
    """Of the projections that both have in the same shape, from the first to the second."""
    names = [
        name
        for name, role in checkpoint_roles(first).items()
        if role.kind == "projection"
        and name in second.tensors
        and first.tensors[name].shape == second.tensors[name].shape
        and {first.tensors[name].dtype, second.tensors[name].dtype} <= set(FLOAT_DTYPES)
    ]

    def pairs() -> Iterator[Pair]:
        for name in names:
            yield name, _weight(first, name, device), _weight(second, name, device)

    return _figures(pairs(), sum(math.prod(first.tensors[name].shape) for name in names))


def adapter_intruders(lora: Adapter, target: Checkpoint, device: torch.device) -> IntruderFigures:
    """Of the projections that the adapter's factors change. The adapter must fit the target."""
    match = match_changes(lora, target, target_roles(lora, target), scale=1.0)
    changes = [
        change
        for change in match.changes.values()
        if change.kind == "factors" and change.role == "projection"
    ]

    def pairs() -> Iterator[Pair]:
        for change in changes:
            before = _weight(target, change.tensor, device)
            b, a = (part.to(device, torch.float32) for part in change.factors(lora))
            yield change.tensor, before, torch.addmm(before, b, a)

    work = sum(math.prod(target.tensors[change.tensor].shape) for change in changes)
    return _figures(pairs(), work)


def _weight(checkpoint: Checkpoint, name: str, device: torch.device) -> Tensor:
    weight = checkpoint.tensor(name).to(device).float()
    if not torch.isfinite(weight).all():
        raise CheckpointError(
            f"Tensor '{name}' of {checkpoint.name} holds NaN or infinite numbers; give a sound "
            "checkpoint."
        )
    return weight


def _figures(pairs: Iterator[Pair], work: int) -> IntruderFigures:
    modules: dict[str, ModuleIntruders] = {}
    with progress.bar("Counting intruder directions", max(1, work)) as bar:
        for name, before, after in pairs:
            changed = not torch.equal(before, after)
            cosines = closest_cosines(before, after) if changed else []
            modules[name] = ModuleIntruders(
                intruders=sum(cosine < THRESHOLD for cosine in cosines), cosines=cosines
            )
            bar.advance(before.numel(), text=name)
    groups: dict[str, list[ModuleIntruders]] = {}
    for name, module in modules.items():
        groups.setdefault(leaf_of(name), []).append(module)
    return IntruderFigures(
        directions=DIRECTIONS,
        against=AGAINST,
        threshold=THRESHOLD,
        intruders=sum(module.intruders for module in modules.values()),
        leaves={
            leaf: LeafIntruders(
                modules=len(members),
                with_intruders=sum(member.intruders > 0 for member in members),
                intruders=sum(member.intruders for member in members),
                lowest_cosine=min((c for member in members for c in member.cosines), default=None),
            )
            for leaf, members in groups.items()
        },
        modules=modules,
    )
