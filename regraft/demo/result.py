"""result.json of the demo: what was trained and what every model answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regraft.demo.recipes import Plan


@dataclass(frozen=True, kw_only=True)
class Exam:
    """One model's results. context: in tokens.

    needle, shout: share of questions answered, by length of the row; sparse_needle: of the rows of
    target length with few needles. prose_nll: mean NLL of prose in nats a word, by position, such
    as '64-128'.
    """

    folder: str
    context: int
    theta: float
    needle: dict[int, float]
    sparse_needle: float
    shout: dict[int, float]
    prose_nll: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Thetas:
    """The RoPE base before and after the extension."""

    trained: float
    target: float


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """The time that the demo took, and the processor time of all its threads."""

    wall: float
    cpu: float


@dataclass(frozen=True, kw_only=True)
class DemoRecord:
    """The result. base_steps: training steps of the base; parameters: of each model;
    adapter_error: relative error of the adapter, by graft; models: exam by name. seconds: not in
    the file, which is the same in every run."""

    schema_version: int = 1
    kind: Literal["demo"] = "demo"
    seed: int
    hyperparameters: Plan
    theta: Thetas
    base_steps: int
    parameters: int
    adapter_error: dict[str, float]
    models: dict[str, Exam]
    versions: dict[str, str]
    seconds: Seconds | None = None
