"""What the finished stages of a job say about each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regraft.graft.change import LogitChange
from regraft.graft.record import JobRecord, TargetRecord
from regraft.graft.stages.evaluation import CHANGE, Compare
from regraft.graft.stages.grafting import Apply
from regraft.graft.stages.stage import Stage
from regraft.graft.stages.sweep import Sweep
from regraft.records import read_record


def target_records(
    names: Sequence[str], stages: Sequence[Stage], failed: Mapping[str, str]
) -> dict[str, TargetRecord]:
    """A record of every target, as far as its stages are finished."""
    return {name: _target(name, stages, failed.get(name)) for name in names}


def _target(name: str, stages: Sequence[Stage], failed: str | None) -> TargetRecord:
    own = {stage.kind: stage for stage in stages if stage.target == name}
    compare = own["compare"]
    assert isinstance(compare, Compare)
    graft = own["graft"]
    point = graft.point if isinstance(graft, Apply) and graft.is_finished() else None
    sweep = own.get("sweep")
    change = None
    if compare.is_finished():
        change = read_record(compare.path / CHANGE, LogitChange, "run regraft graft again")
    result = compare.after
    made = isinstance(result, Stage) and result.is_finished()
    return TargetRecord(
        model=compare.before.location,
        result=result.out if made and isinstance(result, Stage) else None,
        rank=point.rank if point else None,
        scale=point.scale if point else None,
        change=change,
        sweep=sweep.record if isinstance(sweep, Sweep) and sweep.is_finished() else None,
        failed=failed,
    )


def summary(record: JobRecord) -> list[tuple[str, str]]:
    """The lines shown after a job: (label, text)."""
    lines = []
    for name, target in record.targets.items():
        if target.result is None:
            lines.append((name, "not made yet"))
            continue
        how = "merged"
        if target.scale is not None:
            how = f"rank {target.rank}, scale {target.scale:g}"
        lines.append((name, f"{target.result} ({how})"))
        if target.sweep is not None:
            lines.append(("chosen", target.sweep.why))
        if target.change is not None:
            lines.append(("what changed", target.change.describe()))
    return lines
