"""A guard: a smaller change for the weights that the target's own fine-tuning moved most.

Each weight's change is scaled by 1 - sigmoid(12 m - 6). m is |W - W_guard| of that weight, mapped
linearly to [0, 1] over its tensor; W_guard is the model that the target was fine-tuned from. So a
weight that did not move gets 0.9975 of its change and the one that moved most 0.0025. The rule is
that of EasyLLMFeaturePorter (StableFluffy, 2024), which put a longer context into Llama-3-8B
fine-tunes. As there, a tensor whose weights all moved alike, or not at all, gets the whole change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from regraft.adapters import lineage
from regraft.adapters.apply.match import Change, Match, names_in_transformers, target_roles
from regraft.adapters.reader import Adapter
from regraft.checkpoint.dtypes import FLOAT_DTYPES
from regraft.checkpoint.hf.roles import checkpoint_roles
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError, LineageError
from regraft.records import GuardRecord, ModelRecord, RelationRecord

_STEEPNESS = 12.0
_ALIKE = 1e-6  # range of |W - W_guard| below which all weights of a tensor count as moved alike


@dataclass(frozen=True)
class Movement:
    """Smallest and largest |W - W_guard| of a tensor."""

    low: float
    high: float

    def scales(self, moved: Tensor) -> Tensor:
        """Factors of the change of any weights, written over `moved`, their |W - W_guard|."""
        if not self.high - self.low >= _ALIKE:
            return moved.fill_(1.0)
        share = moved.sub_(self.low).div_(self.high - self.low)
        # 1 - sigmoid(x) = sigmoid(-x)
        return share.sub_(0.5).mul_(-_STEEPNESS).sigmoid_()


@dataclass(frozen=True)
class Guard:
    """The model that a target is compared with. tensors: changed tensor of the target -> the
    guard's tensor of the same weights. relation: from the guard to the target."""

    model: Checkpoint
    tensors: dict[str, str]
    relation: RelationRecord
    warnings: list[str] = field(default_factory=list)

    def to_record(self) -> GuardRecord:
        """The guard's identity and its distance from the target."""
        model = ModelRecord(
            name=self.model.name,
            revision=self.model.revision,
            fingerprint=self.model.fingerprint(),
        )
        return GuardRecord(model=model, relation=self.relation)

    def moved(self, name: str, weights: Tensor, start: int) -> Tensor:
        """|W - W_guard| of rows of the target's tensor `name` from row `start` on, on their device
        and in their dtype."""
        tensor = self.tensors[name]
        if self.model.tensors[tensor].shape:
            other = self.model.rows(tensor, start, start + weights.shape[0])
        else:
            other = self.model.tensor(tensor).reshape(1)
        moved = torch.empty_like(weights).copy_(other.to(weights.device))
        return moved.sub_(weights).abs_()


def match_guard(
    lora: Adapter, target: Checkpoint, match: Match, guard: Checkpoint, *, force: bool = False
) -> Guard:
    """Find the guard's tensor for every tensor that the adapter changes. Only headers and samples
    are read.

    Raises InputError where the adapter replaces tensors, CheckpointError where the guard lacks a
    tensor or has another shape, LineageError where it is no relative of the target (not with
    `force`).
    """
    if any(change.kind == "replacement" for change in match.changes.values()):
        raise InputError(
            f"{lora.name} replaces whole tensors (modules_to_save), which --guard cannot scale; "
            "leave it out."
        )
    roles, same = target_roles(lora, target), _same_modules(target, match, guard)
    embedding = next((name for name, role in roles.items() if role.kind == "embedding"), None)
    tensors: dict[str, str] = {}
    for name, change in match.changes.items():
        other = same.get(name)
        if other is None and change.role == "head" and embedding is not None and guard.tied:
            other = same.get(embedding)
        if other is None:
            raise CheckpointError(
                f"The guard {guard.name} has no tensor '{name}', which {target.name} has; give the "
                "model that it was fine-tuned from."
            )
        _check_shape(target, change, guard, other)
        tensors[name] = other
    samples = lineage.sketch(guard)
    relation = lineage.relate(
        {name: samples[other] for name, other in same.items() if other in samples},
        lineage.sketch(target),
        roles,
    )
    if relation.verdict == "stranger" and not force:
        raise LineageError(
            f"{target.name} is no relative of the guard {guard.name}: "
            f"{lineage.describe(relation)}; give the model that it was fine-tuned from, or --force."
        )
    warnings = []
    if all(distance.distance == 0 for distance in relation.roles.values()):
        warnings.append(
            f"{target.name} and the guard {guard.name} have the same weights, so nothing is "
            "guarded; give the model that it was fine-tuned from."
        )
    return Guard(guard, tensors, relation, warnings)


def _same_modules(target: Checkpoint, match: Match, guard: Checkpoint) -> dict[str, str]:
    """Tensor of the target -> the guard's of the same name, or else of the same module."""
    shared = {name: name for name in target.tensors if name in guard.tensors}
    if match.changes.keys() <= shared.keys():
        return shared
    own, other = (names_in_transformers(checkpoint_roles(model)) for model in (target, guard))
    return shared | {own[name]: other[name] for name in own if name in other}


def _check_shape(target: Checkpoint, change: Change, guard: Checkpoint, other: str) -> None:
    """Raise CheckpointError unless the guard's tensor has the rows that change."""
    own, info = target.tensors[change.tensor], guard.tensors[other]
    fits = info.shape == own.shape or (
        change.role in ("embedding", "head")
        and info.shape[1:] == own.shape[1:]
        and info.shape[0] >= change.rows
    )
    if not fits:
        raise CheckpointError(
            f"Tensor '{other}' of the guard {guard.name} is {list(info.shape)} and that of "
            f"{target.name} is {list(own.shape)}; give the model that it was fine-tuned from."
        )
    if info.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"Tensor '{other}' of the guard {guard.name} is stored as {info.dtype}; give a "
            "checkpoint that is not quantised."
        )
