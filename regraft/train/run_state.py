"""The progress of a run, which a training state holds beside weights and random states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from regraft.train.record import (
    AbandonedAttempt,
    DriftRecord,
    RecoveryPoint,
    ValidationRecord,
    validation_from_json,
)


@dataclass
class RunState:
    """The progress of a run, without weights and optimizer.

    step: optimizer steps taken, including abandoned attempts. stage: from 0. stage_step: steps
    taken in it. tokens: trained, including abandoned attempts. counts: rows taken of each source in
    the stage. stopped: why a stage ended early, by stage. validations: results in the current
    stage; validation_lines: lines of watch.jsonl. drifts, points: of a recovery; finished: whether
    it ended before its last step.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    tokens: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)
    abandoned: list[AbandonedAttempt] = field(default_factory=list)
    validation_lines: int = 0
    validations: list[ValidationRecord] = field(default_factory=list)
    drifts: list[DriftRecord] = field(default_factory=list)
    points: list[RecoveryPoint] = field(default_factory=list)
    finished: bool = False

    @property
    def attempt(self) -> int:
        """Number of the current attempt at the stage, from 0."""
        return sum(attempt.stage == self.stage + 1 for attempt in self.abandoned)

    @property
    def learned_steps(self) -> int:
        """Optimizer steps that led to the current weights (abandoned attempts excluded)."""
        return self.step - sum(attempt.steps for attempt in self.abandoned)

    @property
    def learned_tokens(self) -> int:
        """Tokens of `learned_steps`."""
        return self.tokens - sum(attempt.tokens for attempt in self.abandoned)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunState:
        """The inverse of `dataclasses.asdict` through JSON, whose keys are strings."""
        parts = {
            "stopped": {int(stage): reason for stage, reason in values["stopped"].items()},
            "abandoned": [AbandonedAttempt(**attempt) for attempt in values["abandoned"]],
            "validations": [validation_from_json(line) for line in values["validations"]],
            "drifts": [DriftRecord(**drift) for drift in values["drifts"]],
            "points": [RecoveryPoint(**point) for point in values["points"]],
        }
        return cls(**{**values, **parts})
