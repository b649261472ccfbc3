"""The records that `inspect_model` returns for two folders; `records.to_json` makes JSON of them.

Norms are Frobenius norms; d = second - first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from regraft.records import BaseRecord, ContextRecord, RelationRecord


@dataclass(frozen=True, kw_only=True)
class ComparedCheckpoint:
    """One of two compared models."""

    name: str
    revision: str | None
    model_type: str | None
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ComparedContexts:
    """The contexts of two models; None where a config has none, whose text says why."""

    first: ContextRecord | None
    second: ContextRecord | None
    first_text: str
    second_text: str
    same: bool


@dataclass(frozen=True, kw_only=True)
class Norms:
    """The size of a change. norm: of the first; other_norm: of the second; product: <first,
    second>. relative_delta and cosine are None where the quotient is undefined."""

    delta_norm: float
    norm: float
    other_norm: float
    relative_delta: float | None
    cosine: float | None
    product: float


@dataclass(frozen=True, kw_only=True)
class TensorChange(Norms):
    """The change of one tensor."""

    role: str
    layer: int | None
    leaf: str
    shape: list[int]


@dataclass(frozen=True, kw_only=True)
class MatrixChange(TensorChange):
    """The change of a matrix. effective_rank: ||d||^4 / ||d'd||^2; above_noise: share of ||d||^2
    that rounding to the stored dtypes cannot explain, None where the matrices are equal."""

    effective_rank: float
    spectral_norm: float
    above_noise: float | None


@dataclass(frozen=True, kw_only=True)
class TotalChange(Norms):
    """The change of several tensors taken together.

    effective_rank: mean over the matrices that changed, None where none did.
    """

    tensors: int
    changed: int
    parameters: int
    effective_rank: float | None = None
    effective_rank_min: float | None = None
    effective_rank_max: float | None = None
    above_noise: float | None


@dataclass(frozen=True, kw_only=True)
class ModuleIntruders:
    """Intruder directions of one projection; see `lowrank.intruders`. cosines: of each leading
    singular vector the largest with one of the original's; empty where nothing changed."""

    intruders: int
    cosines: list[float]


@dataclass(frozen=True, kw_only=True)
class LeafIntruders:
    """The projections with the same last name. lowest_cosine: None where none changed."""

    modules: int
    with_intruders: int
    intruders: int
    lowest_cosine: float | None


@dataclass(frozen=True, kw_only=True)
class IntruderFigures:
    """Of the `directions` leading singular vectors of each changed projection, those below
    `threshold` with each of the `against` leading ones of the original. leaves: by last part of the
    module name."""

    directions: int
    against: int
    threshold: float
    intruders: int
    leaves: dict[str, LeafIntruders]
    modules: dict[str, ModuleIntruders]


@dataclass(frozen=True, kw_only=True)
class CheckpointComparison:
    """Two models, tensor by tensor.

    roles, layers, leaves: totals by role, by layer and by last part of the module name (matrices
    only). not_comparable: tensor of both -> the two shapes or dtypes. rows_added: tensor -> rows
    that the second has more.
    """

    kind: Literal["checkpoints"] = "checkpoints"
    first: ComparedCheckpoint
    second: ComparedCheckpoint
    relation: RelationRecord
    context: ComparedContexts
    total: TotalChange
    roles: dict[str, TotalChange]
    layers: dict[str, TotalChange]
    leaves: dict[str, TotalChange]
    only_in_first: list[str]
    only_in_second: list[str]
    not_comparable: dict[str, str]
    rows_added: dict[str, int]
    definitions: dict[str, str] = field(
        default_factory=lambda: {
            "relative_delta": "||second - first|| / ||first||, Frobenius norms over shared entries",
            "cosine": "<first, second> / (||first|| ||second||)",
            "effective_rank": "of D = second - first: ||D||_F^4 / ||D'D||_F^2",
            "above_noise": "share of ||D||_F^2 that rounding to the stored dtypes cannot explain",
        }
    )
    tensors: dict[str, TensorChange]
    intruders: IntruderFigures | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedAdapter:
    """One of two compared adapters. context: 'before -> after'."""

    name: str
    base: str | None
    modules: int
    context: str | None


@dataclass(frozen=True, kw_only=True)
class SameBase:
    """Whether two adapters have the same base, None where that is unknown, and how it was decided:
    by fingerprint, sampled weights or name."""

    same: bool | None
    how: str


@dataclass(frozen=True, kw_only=True)
class SampledBase(SameBase):
    """The bases compared by sampled weights. distance: ||a - b|| / ||a||."""

    verdict: str
    distance: float | None


@dataclass(frozen=True, kw_only=True)
class FactorComparison:
    """The changes of one module in two adapters.

    overlap: mean of overlap_out and overlap_in, for the leading left and right singular vectors;
    by_chance: its expectation for random subspaces of the same sizes; directions: the dimension of
    the smaller subspace. All are None where a change is zero.
    """

    norm: float
    other_norm: float
    product: float
    cosine: float | None
    overlap: float | None
    overlap_out: float | None = None
    overlap_in: float | None = None
    by_chance: float | None = None
    directions: int | None = None


@dataclass(frozen=True, kw_only=True)
class FactorTotal:
    """The changes of several modules in two adapters; overlap, by_chance: means."""

    modules: int
    norm: float
    other_norm: float
    cosine: float | None
    overlap: float | None
    by_chance: float | None


@dataclass(frozen=True, kw_only=True)
class AdapterComparison:
    """Two adapters, module by module. context_same: None where one carries no context."""

    kind: Literal["adapters"] = "adapters"
    first: ComparedAdapter
    second: ComparedAdapter
    base: SameBase
    context_same: bool | None
    total: FactorTotal
    leaves: dict[str, FactorTotal]
    only_in_first: list[str]
    only_in_second: list[str]
    other_shape: list[str]
    definitions: dict[str, str]
    modules: dict[str, FactorComparison]


@dataclass(frozen=True, kw_only=True)
class GraftContexts:
    """Contexts in words: of the checkpoint, of the adapter's base and extended model, and of what
    `regraft apply` would write; policy: where the last comes from, see `Verdict`."""

    checkpoint: str
    adapter_base: str | None
    adapter_extended: str | None
    output: str | None
    policy: str | None


@dataclass(frozen=True, kw_only=True)
class GraftInspection:
    """What `regraft apply` would do with an adapter and a checkpoint.

    fits: whether every module has its tensor; if not, `refused` says why and what depends on it is
    None. refused: reasons for which `apply` would stop. See `Verdict` for the others.
    """

    kind: Literal["checkpoint and adapter"] = "checkpoint and adapter"
    adapter: str
    checkpoint: str
    fits: bool
    modules: int
    changed_tensors: int | None
    tensors: int
    relation: RelationRecord | None
    base: BaseRecord | None
    already_present: float | None
    context: GraftContexts
    refused: list[str]
    warnings: list[str]
    intruders: IntruderFigures | None = None
