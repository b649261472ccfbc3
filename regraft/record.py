"""What regraft writes beside its outputs as evidence: typed records, one schema for every command.

`regraft.json` of an adapter (`AdapterRecord`), of a grafted checkpoint (`GraftRecord`) or of a
merged one (`MergeRecord`). A record is a frozen dataclass; `write_record` and `read_record` are the
only ways to and from a file, so that what one command writes every other command can read.

Also here, because every record or every command that writes one needs it: the versions of the
libraries, the one way to write JSON, and seeds derived from names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from regraft.errors import CheckpointError, writing
from regraft.input_files import read_bytes
from regraft.write import json_text

SCHEMA_VERSION = 2  # raised whenever a record of an earlier version cannot be read any more
Layout = Literal["portable", "compact", "exact"]
Number = int | float
Plain = str | int | float | bool | None  # an argument of a command
Record = TypeVar("Record")


# What several records are made of.


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """A model that a command read. fingerprint: see `Checkpoint.fingerprint`."""

    name: str
    revision: str | None
    fingerprint: str
    model_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class ContextRecord:
    """A `rope.ContextSpec` as JSON."""

    rope_parameters: dict[str, Any]
    max_position_embeddings: int
    original_max_position_embeddings: int | None


@dataclass(frozen=True, kw_only=True)
class DistanceRecord:
    """||a - b|| / ||a|| and the cosine between sampled weights a and b of one role's tensors."""

    distance: float
    cosine: float
    tensors: int


@dataclass(frozen=True, kw_only=True)
class RelationRecord:
    """How two checkpoints are related, by the role of their tensors."""

    verdict: Literal["same", "relative", "stranger"]
    roles: dict[str, DistanceRecord]
    missing: int


# An adapter.


@dataclass(frozen=True, kw_only=True)
class ContextChange:
    """The context of an adapter's base and of the model that the adapter makes of it."""

    base: ContextRecord
    extended: ContextRecord


@dataclass(frozen=True, kw_only=True)
class TruncationRecord:
    """The truncated SVD that a module was extracted by.

    energy: share of ||D||_F^2 in the factors. signal: share of ||D||_F^2 beyond what rounding the
    two checkpoints put there; signal_captured: share of that in the factors, without the noise
    along their directions, None where the signal is too small to say. least_possible_error: lower
    bound on the relative error of any adapter of this rank; error_bound_over_optimum: proven upper
    bound on the error against the best possible, None where that is at the level of the arithmetic.
    above_noise: how many singular values stand above `noise_edge`.
    """

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
    change that the factors stand for; error: what the stored factors miss of it, relative;
    rounding_error: the part of `error` that comes from the stored dtype."""

    shape: list[int]
    rank: int
    delta_norm: float
    error: float
    rounding_error: float
    relative_delta: float | None = None
    truncation: TruncationRecord | None = None
    parameters: dict[str, Any] | None = None  # of the merge method


@dataclass(frozen=True, kw_only=True)
class RankGain:
    """What the same extraction would be with no module above `rank`; see `AdapterTotals`."""

    rank: int
    bytes: int
    error: float
    signal_captured: float | None


@dataclass(frozen=True, kw_only=True)
class AdapterTotals:
    """All modules of an adapter. rank_stored: the one rank that all are padded to, if there is
    one; parameters, bytes: of the factors as stored; error: relative, over all modules.

    Of an extraction: energy, signal, signal_captured: see `TruncationRecord`; by_rank: what rank
    buys, ascending to the adapter's own; suggested_rank: None where there is too little signal to
    judge by, or every module has a rank of its own.
    """

    modules: int
    rank_min: int
    rank_max: int
    rank_stored: int | None
    parameters: int
    bytes: int
    delta_norm: float
    error: float
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
class ExtractionRecord:
    """How an adapter was extracted and what was left out.

    rule: the rank rule in words; unchanged, below_noise: modules without factors.
    """

    rule: str
    lineage: RelationRecord
    notes: list[str]
    unchanged: list[str] = field(default_factory=list)
    below_noise: list[str] = field(default_factory=list)
    not_captured: dict[str, NotCaptured] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MergeSource:
    """Where a merged adapter came from."""

    method: str
    recipe: str
    inputs: list[str]
    exact: bool  # merged in factors, not densely and extracted again


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """regraft.json of every adapter, whichever command made it.

    differences: tensors in regraft-differences.safetensors. In a dry run `modules` is empty,
    `totals` None and `plan` says what would be done.
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
    plan: dict[str, Any] | None = None
    kind: Literal["adapter"] = "adapter"
    schema_version: int = SCHEMA_VERSION


# A grafted checkpoint.


@dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """An adapter that a command read: the SHA-256 of the files that decide the change."""

    name: str
    sha256: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """What is known of the base of an applied adapter; a plain PEFT adapter may name none."""

    name: str | None
    revision: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class GraftContext:
    """The checkpoint's context, the output's, and who decided it: 'adapter', 'checkpoint' or
    'given'."""

    checkpoint: ContextRecord
    output: ContextRecord
    policy: str


@dataclass(frozen=True, kw_only=True)
class GraftShare:
    """The change D of some tensors together, in Frobenius norms.

    lost_to_storage: ||E|| / ||D|| for the error E of rounding to the stored dtype; retained:
    <D, D - E> / ||D||^2, what reaches the file along the change's own direction. The rest of E is
    noise like that of any model in that dtype.
    """

    tensors: int
    change_norm: float
    lost_to_storage: float
    retained: float


@dataclass(frozen=True, kw_only=True)
class TensorGraft(GraftShare):
    """The change of one tensor. kind: 'factors', 'difference' or 'replacement'; rows: how many
    leading rows changed."""

    kind: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class GraftRecord:
    """regraft.json of a checkpoint that an adapter was applied to.

    already_present: how much of the change the checkpoint had before, where that can be known.
    In a dry run `totals` is None and `plan` says what would be done.
    """

    adapter: AdapterFiles
    base: BaseRecord
    checkpoint: ModelRecord
    context: GraftContext
    lineage: RelationRecord | None
    already_present: float | None
    arguments: dict[str, Plain]
    versions: dict[str, str]
    totals: GraftShare | None = None
    roles: dict[str, GraftShare] = field(default_factory=dict)
    tensors: dict[str, TensorGraft] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    untied_head: str | None = None  # a head of its own that a tied checkpoint gets
    plan: dict[str, Any] | None = None
    kind: Literal["graft"] = "graft"
    schema_version: int = SCHEMA_VERSION


# A merged model.


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
    """Which inputs gave config.json and tokenizer, why the first, and the files copied."""

    config: str
    why: str
    tokenizer: str
    files: list[str]
    chat_template: str


@dataclass(frozen=True, kw_only=True)
class MergeContext:
    """The output's context and who decided it."""

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
    parameters: dict[str, Any] = field(default_factory=dict)
    figures: MergeFigures | None = None


@dataclass(frozen=True, kw_only=True)
class MergeRecord:
    """regraft.json of a merged model.

    engine_why: why the merge ran in mergekit. In a dry run `totals` is None and `plan` says what
    would be done.
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
    plan: dict[str, str] | None = None
    kind: Literal["merge"] = "merge"
    schema_version: int = SCHEMA_VERSION


# Reading and writing.


def to_json(value: Any) -> Any:
    """`value` with every dataclass in it as a dict; fields that are None by default are left out
    where they are None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: to_json(content)
            for item in dataclasses.fields(value)
            if (content := getattr(value, item.name)) is not None or item.default is not None
        }
    if isinstance(value, dict):
        return {key: to_json(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(content) for content in value]
    return value


def dump_json(value: Any) -> bytes:
    """Indented JSON in UTF-8, ending in a newline. Raises ValueError for NaN and infinity, which
    are no JSON; characters that are no text (of an undecodable file name) become '?'."""
    return json_text(to_json(value)).encode("utf-8", "replace")


def write_record(path: Path, record: Any) -> None:
    """Raises OutputError naming the file."""
    with writing(path):
        path.write_bytes(dump_json(record))


def read_record(path: Path, kind: type[Record], mend: str) -> Record:
    """The record in the file, of the dataclass `kind`; `mend`: what to do if it is broken.

    Raises CheckpointError naming the file and the key that is missing or of another type.
    """
    from pydantic import ValidationError
    from pydantic_core import from_json

    data = read_bytes(path, CheckpointError)
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); {mend}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; {mend}.")
    number = value.get("schema_version")
    if isinstance(number, int) and number != SCHEMA_VERSION:
        newer = number > SCHEMA_VERSION
        raise CheckpointError(
            f"{path} has schema version {number} and this regraft reads {SCHEMA_VERSION}; "
            f"{'update regraft' if newer else 'make the folder again with this regraft'}."
        )
    try:
        return cast(Record, _reader(cast(Any, kind)).validate_json(data, strict=True))
    except ValidationError as error:
        problems = error.errors(include_url=False)
    first = problems[0]
    key = _key(first["loc"])
    if first["type"] == "missing":
        raise CheckpointError(f"{path} lacks the key '{key}'; {mend}.")
    same = [p for p in problems if _key(p["loc"]) == key]  # the alternatives of a union
    expected = " or ".join(p["msg"].removeprefix("Input should be ") for p in same)
    got = repr(first["input"])
    got = got if len(got) <= 60 else f"{got[:57]}..."
    raise CheckpointError(f"{path}: '{key}' should be {expected}, not {got}; {mend}.")


def _key(location: tuple[int | str, ...]) -> str:
    """a.b.0 of pydantic's location, without the name of a union's alternative at its end."""
    parts = [str(part) for part in location]
    if len(parts) > 1 and re.fullmatch(r"(str|int|bool|float|list\[\w+\])", parts[-1]):
        parts.pop()
    return ".".join(parts)


@lru_cache
def _reader(kind: Any) -> Any:
    from pydantic import TypeAdapter  # a sixth of a second, and not every command reads a record

    return TypeAdapter(kind)


def versions() -> dict[str, str]:
    """The software that made a result."""
    names = ("regraft", "torch", "transformers", "peft")
    return {**{name: version(name) for name in names}, "python": platform.python_version()}


def derive_seed(seed: int, name: str) -> int:
    """A seed of its own for every module or tensor, so that order and selection change nothing."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "little")
