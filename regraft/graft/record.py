"""`JobRecord`: graft.json, the stages and results of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """A target and its result.

    result: its folder; context: its length in tokens; story: a sentence on the models of the graft;
    how: rank and scale, chosen by the sweep if there is one; change: of the logits; report: the
    folder of its evaluation; failed: the stage and its error. Fields of unfinished stages are None.
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
    """graft.json. plan: of a dry run, stage name -> text."""

    recipe: str
    stages: list[StageRecord]
    targets: dict[str, TargetRecord]
    versions: dict[str, str]
    plan: dict[str, str] | None = None
    kind: Literal["job"] = "job"
    schema_version: int = SCHEMA_VERSION
