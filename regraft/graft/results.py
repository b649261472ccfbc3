"""The record of each target, from the finished stages of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from regraft.checkpoint.read.source import Checkpoint
from regraft.evaluate.report.text import scores
from regraft.evaluate.result import read_result
from regraft.graft.change import LogitChange
from regraft.graft.record import JobRecord, TargetRecord
from regraft.graft.stages.evaluation import CHANGE
from regraft.graft.stages.grafting import Apply
from regraft.graft.stages.package import Package
from regraft.graft.stages.stage import Stage
from regraft.graft.stages.sweep import Sweep
from regraft.records import read_record
from regraft.rope import ContextSpec


def target_records(
    names: Sequence[str], stages: Sequence[Stage], failed: Mapping[str, str]
) -> dict[str, TargetRecord]:
    """A record of every target, as far as its stages are finished."""
    return {name: _target(name, stages, failed.get(name)) for name in names}


def _target(name: str, stages: Sequence[Stage], failed: str | None) -> TargetRecord:
    own = {stage.kind: stage for stage in stages if stage.target == name and stage.is_finished()}
    package = next(stage for stage in stages if isinstance(stage, Package) and stage.target == name)
    record = TargetRecord(
        model=package.model.location, recovered=package.result is not package.graft, failed=failed
    )
    if isinstance(sweep := own.get("sweep"), Sweep):
        record = replace(record, sweep=sweep.record)
    if isinstance(graft := own.get("graft"), Apply):
        record = replace(record, rank=graft.point.rank, scale=graft.point.scale)
    if "graft" in own:
        record = replace(record, how=package.how)
    if (compare := own.get("compare")) is not None:
        change = read_record(compare.path / CHANGE, LogitChange, "run regraft graft again")
        record = replace(record, change=change)
    if (report := own.get("evaluate")) is not None:
        record = replace(record, report=report.out)
    if "card" in own:
        with Checkpoint.open(package.path) as model:
            length = ContextSpec.from_config(model.config).max_position_embeddings
        record = replace(record, result=package.out, context=length, story=package.story)
    return record


def summary(record: JobRecord, out: str) -> list[tuple[str, str]]:
    """The lines printed after a job: (label, text)."""
    lines: list[tuple[str, str]] = []
    for name, target in record.targets.items():
        if target.result is None:
            lines.append((name, "not made yet"))
            continue
        lines.append((name, f"{target.result} ({target.how})"))
        if target.sweep is not None:
            lines.append(("chosen", target.sweep.why))
        if target.change is not None:
            lines.append(("what changed", target.change.describe()))
        if target.report is not None:
            lines += [("measured", line) for line in scores(read_result(Path(out) / target.report))]
    return [*lines, ("page", f"{out}/index.html")]
