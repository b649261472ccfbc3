"""`JobRecord`: graft.json, what a job made of its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from regraft.graft.change import LogitChange
from regraft.graft.choose import SweepRecord
from regraft.records import SCHEMA_VERSION

FILE = "graft.json"


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """A stage of the job. out: its folder in the job's; key: hash of its inputs and arguments,
    None while it is not finished."""

    name: str
    out: str
    key: str | None


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """A target and what was made of it.

    result: its folder; context: its length in tokens; story: what was grafted on what; how: rank
    and scale, which the sweep chose where there is one; change: of the logits; report: the folder
    of its evaluation; failed: the stage and its error. What is not made yet is None.
    """

    model: str
    result: str | None = None
    context: int | None = None
    story: str | None = None
    how: str | None = None
    rank: str | None = None
    scale: float | None = None
    recovered: bool = False
    sweep: SweepRecord | None = None
    change: LogitChange | None = None
    report: str | None = None
    failed: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """graft.json. In a dry run `plan` says, by stage, what would be done."""

    recipe: str
    stages: list[StageRecord]
    targets: dict[str, TargetRecord]
    versions: dict[str, str]
    plan: dict[str, Any] | None = None
    kind: Literal["job"] = "job"
    schema_version: int = SCHEMA_VERSION
