"""The records that `inspect_model` returns for one folder; `records.to_json` makes JSON of them.

Norms are Frobenius norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regraft.records import AdapterTotals, ContextRecord, NotCaptured


@dataclass(frozen=True, kw_only=True)
class CheckpointContext(ContextRecord):
    """A model's context. longest_wavelength: tokens per rotation of the slowest frequency, None
    where the frequencies are unknown."""

    theta: float
    rope_type: str
    longest_wavelength: float | None


@dataclass(frozen=True, kw_only=True)
class RoleSize:
    """The tensors of one role and their elements."""

    tensors: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class GraftOrigin:
    """What a graft was made from. lines: (label, text) as `regraft apply` prints them."""

    adapter: str
    checkpoint: str
    versions: dict[str, str]
    lines: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class MergeOrigin:
    """What a merged model was made from. lines: (label, text)."""

    method: str
    inputs: list[str]
    versions: dict[str, str]
    lines: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class CheckpointDescription:
    """One model. kind: 'graft' or 'merge' where the regraft.json beside the model says so.

    parameters: a tied head counts once. bytes: of all tensors. dtypes: tensors by dtype.
    tokenizer_max_length: None where the tokenizer states no limit. fingerprint: None for a Hub
    model, whose shards it would download. unknown_tensors: those that the model class does not
    have.
    """

    kind: Literal["checkpoint", "graft", "merge"] = "checkpoint"
    name: str
    revision: str | None
    architecture: str | None
    model_type: str | None
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    shards: int
    layers: int | None
    hidden_size: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int
    vocabulary: int | None
    tied: bool
    context: CheckpointContext | None
    context_text: str
    tokenizer_max_length: int | None
    fingerprint: str | None
    roles: dict[str, RoleSize]
    unknown_tensors: list[str]
    made: GraftOrigin | MergeOrigin | None = None


@dataclass(frozen=True, kw_only=True)
class DescribedContext(ContextRecord):
    """A context and its description in words."""

    text: str


@dataclass(frozen=True, kw_only=True)
class AdapterContexts:
    """The contexts of an adapter's base and of the model that the adapter makes of it."""

    base: DescribedContext
    extended: DescribedContext


@dataclass(frozen=True, kw_only=True)
class ModuleFigures:
    """One module of an adapter. change_norm: ||s B A||."""

    shape: list[int]
    rank: int
    scaling: float
    parameters: int
    change_norm: float
    effective_rank: float


@dataclass(frozen=True, kw_only=True)
class LeafFigures:
    """All modules of an adapter with the same last name, such as q_proj. effective_rank: mean."""

    modules: int
    rank_min: int
    rank_max: int
    parameters: int
    change_norm: float
    effective_rank: float
    effective_rank_min: float
    effective_rank_max: float


@dataclass(frozen=True, kw_only=True)
class AdapterDescription:
    """One adapter. Values that only regraft.json states are None for an adapter from elsewhere.

    parameters: of the factors; bytes: of the weight files. leaves: by last part of the module name.
    replaced: tensors stored whole (modules_to_save); differences: dense differences beside the
    factors; ignored: keys that change nothing. carries_lineage: whether the base can be recognised
    by its weights. readers: program -> how it loads the adapter, or why it does not.
    """

    kind: Literal["adapter"] = "adapter"
    name: str
    base: str | None
    base_revision: str | None
    base_fingerprint: str | None
    extended: str | None
    method: str | None
    merged_from: list[str]
    layout: str | None
    rule: str | None
    rank_min: int
    rank_max: int
    lora_alpha: float | None
    scaling_min: float | None
    scaling_max: float | None
    rslora: bool
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    change_norm: float
    leaves: dict[str, LeafFigures]
    replaced: list[str]
    differences: list[str]
    ignored: list[str]
    context: AdapterContexts | None
    carries_lineage: bool
    totals: AdapterTotals | None
    not_captured: dict[str, NotCaptured] | None
    warnings: list[str]
    readers: dict[str, str]
    modules: dict[str, ModuleFigures]
