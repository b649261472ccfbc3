"""The records of a training: the lines of its two logs, and train.json.

metrics.jsonl is a `StepRecord` a line, watch.jsonl a `ValidationRecord` a line, train.json a
`TrainingRecord`. `regraft.records` writes and reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from regraft.document import RecipeValues
from regraft.records import SCHEMA_VERSION, ContextRecord, ModelRecord, Plain


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step.

    stage, attempt: from 1. length: the stage's target, tokens. tokens: trained so far. valid:
    tokens of the step that have a label. left: estimated seconds to the end, None at the start.
    loss: mean NLL over the valid tokens, nats. gradient: norm before clipping. memory: peak
    bytes in use on a device so far; reserved: peak bytes of its allocator; retries: how often the
    allocator released its cache to serve a request (both on a GPU). mfu: None where the chip's rate
    is not known.
    """

    step: int
    stage: int
    attempt: int
    length: int
    theta: float
    tokens: int
    valid: int
    seconds: float
    left: float | None
    loss: float
    rate: float
    gradient: float
    tokens_per_second: float
    memory: int
    mfu: float | None = None
    reserved: int | None = None
    retries: int | None = None


@dataclass(frozen=True, kw_only=True)
class NeedleScore:
    """nll: nats a token of the answers. accuracy: share of rows whose answer is the most likely."""

    nll: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class ValidationScore:
    """nll: mean NLL of held-out text in nats, by positions such as '0-64'."""

    nll: dict[str, float]
    needle: NeedleScore | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """The `ValidationScore` after `step` steps, on rows of `length` tokens."""

    step: int
    stage: int
    attempt: int
    length: int
    nll: dict[str, float]
    needle: NeedleScore | None = None


def validation_from_json(values: Mapping[str, Any]) -> ValidationRecord:
    """The inverse of `regraft.records.to_json`."""
    needle = values.get("needle")
    return ValidationRecord(**{**values, "needle": NeedleScore(**needle) if needle else None})


@dataclass(frozen=True, kw_only=True)
class DriftRecord:
    """NLL of held-out short text minus the teacher's, in nats, after `step` steps."""

    step: int
    drift: float


@dataclass(frozen=True, kw_only=True)
class RecoveryPoint:
    """What a recovery has reached after `step` steps, with all it must improve and must not lose.

    drift: as in `DriftRecord`, None without a teacher. far_nll: NLL at the farthest positions of
    `watch`, nats. needles: share found, None without a needle. veto: why these weights are not
    exported, None where they may be.
    """

    step: int
    drift: float | None
    far_nll: float
    needles: float | None
    veto: str | None = None


@dataclass(frozen=True, kw_only=True)
class RecoveryChoice:
    """Which weights a recovery exports: those after `step` steps, and why. far, needles: the bounds
    of the veto, in nats and as a share; positions: those of the points' far_nll."""

    step: int
    reason: str
    far: float
    needles: float
    positions: str
    points: list[RecoveryPoint]

    @property
    def point(self) -> RecoveryPoint:
        """The point that is exported."""
        return next(point for point in self.points if point.step == self.step)


@dataclass(frozen=True, kw_only=True)
class AbandonedAttempt:
    """An attempt at a stage (from 1) that validation stopped and that was repeated with the next
    theta. steps, tokens: trained in it and discarded."""

    stage: int
    theta: float
    steps: int
    tokens: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """The context of the model before, and after each stage."""

    base: ContextRecord
    stages: list[ContextRecord]


@dataclass(frozen=True, kw_only=True)
class LossChange:
    """Training loss of the first and of the last step, in nats a token."""

    first: float
    last: float


@dataclass(frozen=True, kw_only=True)
class ValidationChange:
    """The first validation, and that of the exported weights."""

    first: ValidationRecord
    last: ValidationRecord


@dataclass(frozen=True, kw_only=True)
class LossPair:
    """Mean NLL of the same `tokens` held-out tokens before and after a training, in nats."""

    tokens: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class SourceLoss:
    """Held-out loss of a source. share: of the trained tokens; suggested_share: of another
    training, by `train.source_losses`. within, beyond: positions within the context that the model
    had before and beyond it; beyond is None where no document reaches so far."""

    share: float
    suggested_share: float
    within: LossPair
    beyond: LossPair | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """train.json: recipe, base model, contexts, results and versions of a training.

    text: digest of each source's tokens. steps, tokens, stage_steps: without abandoned attempts.
    stopped: why a stage ended early, by its number from 1. choice: of a recovery that watches the
    long range, which may export earlier weights than the last. sources: held-out loss by source,
    of two or more under `watch`. plan: of a dry run, whose `steps` is 0.
    """

    export: Literal["model", "adapter"]
    recipe: RecipeValues
    base: ModelRecord
    context: TrainingContext
    text: dict[str, str]
    steps: int
    stage_steps: list[int]
    tokens: int
    abandoned: list[AbandonedAttempt]
    stopped: dict[str, str]
    loss: LossChange | None
    drift: list[DriftRecord]
    watch: ValidationChange | None
    choice: RecoveryChoice | None = None
    sources: dict[str, SourceLoss] = field(default_factory=dict)
    processes: str
    versions: dict[str, str]
    plan: dict[str, Plain] | None = None
    kind: Literal["training"] = "training"
    schema_version: int = SCHEMA_VERSION
