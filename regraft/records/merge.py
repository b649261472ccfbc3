"""`MergeRecord`: regraft.json of a merged model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from regraft.input_files import JsonObject
from regraft.records.common import (
    SCHEMA_VERSION,
    AdapterFiles,
    ContextRecord,
    Plain,
    RelationRecord,
)


@dataclass(frozen=True, kw_only=True)
class MergedAdapter(AdapterFiles):
    """An adapter that was merged, and how its base is related to the model it was put on."""

    lineage: RelationRecord | None


@dataclass(frozen=True, kw_only=True)
class MergeInput:
    """A model that was merged. context: two where model and adapter disagree."""

    name: str
    revision: str | None
    fingerprint: str
    context: list[ContextRecord]
    adapter: MergedAdapter | None = None


@dataclass(frozen=True, kw_only=True)
class MergeDonor:
    """Inputs that config.json and the tokenizer come from, the reason for the first, and the files
    copied."""

    config: str
    why: str
    tokenizer: str
    files: list[str]
    chat_template: str


@dataclass(frozen=True, kw_only=True)
class MergeContext:
    """The output's context; policy: what it comes from."""

    output: ContextRecord
    policy: str


@dataclass(frozen=True, kw_only=True)
class ChangeFigures:
    """One input's change: its size relative to the reference, and how much of it is retained."""

    relative: float
    retained: float


@dataclass(frozen=True, kw_only=True)
class PairFigures:
    """The changes of two inputs. overlap: None where the sampled rows are too few for it."""

    models: tuple[str, str]
    cosine: float
    sign_conflict: float
    overlap: float | None


@dataclass(frozen=True, kw_only=True)
class MergeFigures:
    """How much of each input's change one or several tensors retain; see `merge.conflicts`.
    change_norm, lost_to_storage: of the merged change."""

    change_norm: float
    lost_to_storage: float
    changes: dict[str, ChangeFigures]
    pairs: list[PairFigures]


@dataclass(frozen=True, kw_only=True)
class MergeTotals:
    """Several merged tensors. figures: None for a merge that ran in mergekit."""

    tensors: int
    figures: MergeFigures | None = None


@dataclass(frozen=True, kw_only=True)
class TensorSource:
    """A stored tensor of an input."""

    model: str
    tensor: str


@dataclass(frozen=True, kw_only=True)
class TensorMerge:
    """One merged tensor. inputs, base, parameters, figures: of a native merge."""

    role: str
    layer: int | None
    shape: list[int]
    dtype: str
    base: TensorSource | None = None
    inputs: list[TensorSource] = field(default_factory=list)
    parameters: JsonObject = field(default_factory=dict)
    figures: MergeFigures | None = None


@dataclass(frozen=True, kw_only=True)
class MergeRecord:
    """regraft.json of a merged model.

    engine_why: why the merge ran in mergekit. In a dry run `totals` is None and `plan` states
    what would be done.
    """

    recipe: str
    method: str
    engine: Literal["native", "mergekit"]
    engine_why: str | None
    inputs: list[MergeInput]
    donor: MergeDonor
    context: MergeContext
    notes: list[str]
    arguments: dict[str, Plain]
    versions: dict[str, str]
    totals: MergeTotals | None = None
    roles: dict[str, MergeTotals] = field(default_factory=dict)
    tensors: dict[str, TensorMerge] = field(default_factory=dict)
    plan: dict[str, Plain] | None = None
    kind: Literal["merge"] = "merge"
    schema_version: int = SCHEMA_VERSION
