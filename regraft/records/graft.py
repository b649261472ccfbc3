"""`GraftRecord`: regraft.json of a checkpoint that an adapter was applied to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from regraft.records.common import (
    SCHEMA_VERSION,
    AdapterFiles,
    ContextRecord,
    ModelRecord,
    Plain,
    RelationRecord,
)


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """The base of an applied adapter. A plain PEFT adapter may name no base."""

    name: str | None
    revision: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class GraftContext:
    """Context of the checkpoint and of the output. policy: which of 'adapter', 'checkpoint' and
    'given' (by the user) the output's context comes from."""

    checkpoint: ContextRecord
    output: ContextRecord
    policy: str


@dataclass(frozen=True, kw_only=True)
class GraftShare:
    """Size of the change D of one or several tensors, in Frobenius norms.

    lost_to_storage: ||E|| / ||D|| for the error E of rounding to the stored dtype; retained:
    <D, D - E> / ||D||^2, what reaches the file along the change's own direction. The rest of E is
    noise like that of any model in that dtype. guard_scale: mean of the factors by which a guard
    scaled the change of each weight, None without a guard.
    """

    tensors: int
    change_norm: float
    lost_to_storage: float
    retained: float
    guard_scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class TensorGraft(GraftShare):
    """The change of one tensor. kind: 'factors', 'difference' or 'replacement'; rows: how many
    leading rows changed."""

    kind: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class GuardRecord:
    """The model from which the weights' own movement was measured. relation: from it to the
    checkpoint."""

    model: ModelRecord
    relation: RelationRecord


@dataclass(frozen=True, kw_only=True)
class GraftRecord:
    """regraft.json of a checkpoint that an adapter was applied to.

    already_present: share of the change that the checkpoint had before, None where unknown.
    untied_head: name of the output head that a checkpoint with tied embeddings gets.
    In a dry run `totals` is None and `plan` states what would be done.
    """

    adapter: AdapterFiles
    base: BaseRecord
    checkpoint: ModelRecord
    context: GraftContext
    lineage: RelationRecord | None
    already_present: float | None
    arguments: dict[str, Plain]
    versions: dict[str, str]
    guard: GuardRecord | None = None
    totals: GraftShare | None = None
    roles: dict[str, GraftShare] = field(default_factory=dict)
    tensors: dict[str, TensorGraft] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    untied_head: str | None = None
    plan: dict[str, Plain] | None = None
    kind: Literal["graft"] = "graft"
    schema_version: int = SCHEMA_VERSION
