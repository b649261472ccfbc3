"""`AdapterRecord`: regraft.json of an adapter, whichever command made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from regraft.input_files import JsonObject
from regraft.records.common import SCHEMA_VERSION, ContextRecord, ModelRecord, Plain, RelationRecord

Layout = Literal["portable", "compact", "exact"]


@dataclass(frozen=True, kw_only=True)
class ContextChange:
    """The context of an adapter's base and of the model that the adapter makes of it."""

    base: ContextRecord
    extended: ContextRecord


@dataclass(frozen=True, kw_only=True)
class TruncationRecord:
    """The truncated SVD of one module's difference D; of D L in the norm of the inputs where it is
    weighted (see `ModuleRecord.weighted_norm`).

    energy: share of ||D||_F^2 in the factors. signal: share of ||D||_F^2 that is not noise of
    rounding the two checkpoints; signal_captured: share of the signal in the factors, without the
    noise along their directions, None where the signal is too small. least_possible_error:
    lower bound on the relative error of any adapter of this rank; error_bound_over_optimum: proven
    upper bound on the error against the best possible, None where the error is at the level of
    rounding in the arithmetic. above_noise: number of singular values above `noise_edge`."""

    energy: float
    signal: float
    signal_captured: float | None
    truncation_error: float
    error_bound_over_optimum: float | None
    least_possible_error: float
    noise_edge: float
    above_noise: int
    method: str
    passes: int
    spectrum: list[float]


@dataclass(frozen=True, kw_only=True)
class ModuleRecord:
    """One module of an adapter. rank: without zero padding. delta_norm: Frobenius norm of the
    change that the factors approximate; error: relative error of the stored factors;
    rounding_error: the part of `error` that comes from the stored dtype.

    Of a calibrated extraction: weighted_norm: ||D L||_F with C = L L' the second moment of the
    inputs, scaled to a mean eigenvalue of 1; weighted_error: relative error in that norm."""

    shape: list[int]
    rank: int
    delta_norm: float
    error: float
    rounding_error: float
    relative_delta: float | None = None
    weighted_norm: float | None = None
    weighted_error: float | None = None
    truncation: TruncationRecord | None = None
    parameters: JsonObject | None = None  # of the merge method


@dataclass(frozen=True, kw_only=True)
class RankGain:
    """Size and error of the same extraction with every module truncated to at most `rank`; fields
    as in `AdapterTotals`."""

    rank: int
    bytes: int
    error: float
    signal_captured: float | None
    weighted_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterTotals:
    """All modules of an adapter. rank_stored: the rank that all modules are padded to, None if each
    module keeps its own; parameters, bytes: of the factors as stored; error: relative, over all
    modules.

    Of an extraction: energy, signal, signal_captured: see `TruncationRecord`; by_rank: size
    and error for smaller ranks, ascending to the adapter's own; suggested_rank: None where there
    is too little signal, or every module has its own rank.

    Of a calibrated extraction: weighted_error: relative, over all modules, in the norms of their
    inputs; signal and signal_captured are in these norms.
    """

    modules: int
    rank_min: int
    rank_max: int
    rank_stored: int | None
    parameters: int
    bytes: int
    delta_norm: float
    error: float
    weighted_error: float | None = None
    energy: float | None = None
    signal: float | None = None
    signal_captured: float | None = None
    error_bound_over_optimum: float | None = None
    modules_without_bound: int | None = None
    share_of_all_change_not_captured: float | None = None
    by_rank: list[RankGain] = field(default_factory=list)
    suggested_rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class NotCaptured:
    """Tensors of one role that changed and are not in the adapter."""

    tensors: int
    changed: int
    delta_norm: float
    largest_relative_delta: float | None
    share_of_all_change: float
    rows_not_shared: int


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """The text on which the inputs of projections were measured. digest: of text and tokenizer;
    tokens: of all rows of `length`; damping: share of the mean eigenvalue added to C."""

    text: str
    digest: str
    length: int
    tokens: int
    damping: float


@dataclass(frozen=True, kw_only=True)
class ExtractionRecord:
    """How an adapter was extracted, and which changes it does not hold.

    rule: the rank rule in words; unchanged, below_noise: modules without factors.
    """

    rule: str
    lineage: RelationRecord
    notes: list[str]
    unchanged: list[str] = field(default_factory=list)
    below_noise: list[str] = field(default_factory=list)
    not_captured: dict[str, NotCaptured] = field(default_factory=dict)
    calibration: CalibrationRecord | None = None


@dataclass(frozen=True, kw_only=True)
class MergeSource:
    """The merge that made an adapter. exact: merged in factors, not densely and extracted again;
    space: where the method worked, see `lowrank.core_space`."""

    method: str
    recipe: str
    inputs: list[str]
    exact: bool
    space: Literal["dense", "core"] = "dense"


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """regraft.json of every adapter, whichever command made it.

    differences: tensors in regraft-differences.safetensors. In a dry run `modules` is empty,
    `totals` is None and `plan` states what would be done.
    """

    made_by: Literal["extract-lora", "train", "merge"]
    base: ModelRecord
    extended: ModelRecord
    context: ContextChange
    layout: Layout
    differences: list[str]
    modules: dict[str, ModuleRecord]
    totals: AdapterTotals | None
    arguments: dict[str, Plain]
    versions: dict[str, str]
    extraction: ExtractionRecord | None = None
    merge: MergeSource | None = None
    plan: dict[str, Plain] | None = None
    kind: Literal["adapter"] = "adapter"
    schema_version: int = SCHEMA_VERSION
