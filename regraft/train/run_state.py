"""The progress of a run, which a training state holds beside the weights."""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch

from regraft.input_files import JsonObject
from regraft.train.record import (
    AbandonedAttempt,
    DriftRecord,
    RecoveryPoint,
    ValidationRecord,
    validation_from_json,
)

StateDict = dict[str, Any]
"""Tensors and numbers as torch nests them in the state of a module or an optimizer."""


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
    def from_json(cls, values: JsonObject) -> RunState:
        """The inverse of `dataclasses.asdict` through JSON, whose keys are strings."""
        parts = {
            "stopped": {int(stage): reason for stage, reason in values["stopped"].items()},
            "abandoned": [AbandonedAttempt(**attempt) for attempt in values["abandoned"]],
            "validations": [validation_from_json(line) for line in values["validations"]],
            "drifts": [DriftRecord(**drift) for drift in values["drifts"]],
            "points": [RecoveryPoint(**point) for point in values["points"]],
        }
        return cls(**{**values, **parts})


class RandomStates(TypedDict):
    """States of Python's, numpy's and torch's generators, as JSON holds them."""

    python: Any
    numpy: list[Any]
    torch: str
    cuda: list[str]


def random_states() -> RandomStates:
    """States of Python's, numpy's and torch's generators as values for JSON; torch's are bytes, in
    base64."""
    kind, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": _encoded(torch.get_rng_state()),
        "cuda": [_encoded(state) for state in cuda],
    }


def set_random_states(states: RandomStates) -> None:
    """The inverse of `random_states`, for the generators of this process."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_decoded(states["torch"]))
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_decoded(state) for state in states["cuda"]])


def _encoded(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decoded(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
