"""Writes index.html and README.md of a job: the grafts, their measurements and its stages."""

from __future__ import annotations

import base64
import tempfile
from dataclasses import dataclass
from pathlib import Path

from regraft.adapters.serving import model_commands
from regraft.checkpoint.read.source import Checkpoint
from regraft.evaluate.report import plots
from regraft.evaluate.report.page import render_page
from regraft.evaluate.report.plots import Plot
from regraft.evaluate.report.tables import MANY_TASKS, Rows, format_ratio, tables
from regraft.evaluate.report.text import notes
from regraft.evaluate.result import EvaluationRecord, read_result
from regraft.graft.record import JobRecord, TargetRecord
from regraft.graft.report.findings import findings
from regraft.graft.report.sweep import draw_sweep, sweep_table
from regraft.markdown import render, table
from regraft.records import read_record
from regraft.rope import ContextSpec
from regraft.train.job import RECORD as TRAINING
from regraft.train.output.summary import source_losses
from regraft.train.record import TrainingRecord
from regraft.units import format_tokens
from regraft.write import write_text

_README = """\
# {{ title }}

{% for line in introduction %}
{{ line }}
{% endfor %}

{{ overview }}

{% for name, lines in targets %}
## {{ name }}

{% for line in lines %}
{{ line }}

{% endfor %}
{% endfor %}
Figures and tables are in [index.html](index.html), the models with their cards in `models/`, every
number in [graft.json](graft.json).
"""


@dataclass(frozen=True)
class _Target:
    """A target on the page. report: the folder of its evaluation."""

    name: str
    failed: str | None
    lines: list[str]
    sweep: Rows | None
    sweep_image: str | None
    curves: list[Plot]
    losses: list[Plot]
    tables: list[tuple[str, Rows]]
    report: str | None
    commands: list[tuple[str, str]]


def write_pages(folder: Path, record: JobRecord) -> None:
    """Write index.html and README.md of the job in `folder`."""
    results = {
        name: read_result(folder / target.report)
        for name, target in record.targets.items()
        if target.report is not None
    }
    targets = [
        _target(folder, name, target, results.get(name)) for name, target in record.targets.items()
    ]
    overview = _overview(record, results)
    title, introduction = _title(record), _introduction(record)
    first = next(iter(results.values()), None)
    page = render_page(
        "page.html.j2", package="regraft.graft.report", title=title, introduction=introduction,
        overview=overview, targets=targets, distinct_lines=plots.distinct_lines,
        source_losses=_source_losses(folder, record),
        stages=[["stage", "folder", "state"],
                *([s.name, s.out, "finished" if s.key else "not run"] for s in record.stages)],
        recipe=record.recipe, notes=notes(first) if first is not None else [],
        versions=record.versions,
    )  # fmt: skip
    write_text(folder / "index.html", page)
    text = render(
        _README, title=title, introduction=introduction, overview=table(overview),
        targets=[(target.name, target.lines) for target in targets],
    )  # fmt: skip
    write_text(folder / "README.md", text)


def _source_losses(folder: Path, record: JobRecord) -> Rows:
    """A row for each source of each training that scored held-out text of several."""
    rows: Rows = [["training", "source", "held-out NLL in nats; share of the training's tokens"]]
    for stage in record.stages:
        path = folder / stage.out / TRAINING
        if stage.key is not None and path.is_file():
            training = read_record(path, TrainingRecord, "run the job again")
            rows += [[stage.name, *losses] for losses in source_losses(training)]
    return rows


def target_lines(target: TargetRecord) -> list[str]:
    """The result of a target in sentences."""
    lines = []
    if target.result is not None:
        lines.append(f"{target.story} It is in {target.result}.")
    if target.sweep is not None:
        lines.append(f"Chosen: {target.sweep.why}")
    if target.change is not None:
        lines.append(target.change.describe())
    return lines


def _target(
    folder: Path, name: str, target: TargetRecord, result: EvaluationRecord | None
) -> _Target:
    commands: list[tuple[str, str]] = []
    if target.result is not None:
        path = folder / target.result
        with Checkpoint.open(path) as model:
            context = ContextSpec.from_config(model.config)
        commands = list(model_commands(str(path), context).items())
    lines = target_lines(target)
    if result is not None:
        lines += findings(result)
    return _Target(
        name=name,
        failed=target.failed,
        lines=lines,
        sweep=sweep_table(target.sweep) if target.sweep is not None else None,
        sweep_image=_sweep_image(target) if target.sweep is not None else None,
        curves=plots.curves(result) if result is not None else [],
        losses=plots.losses(result) if result is not None else [],
        tables=tables(result, brief=len(result.tasks) > MANY_TASKS) if result is not None else [],
        report=target.report,
        commands=commands,
    )


def _sweep_image(target: TargetRecord) -> str:
    assert target.sweep is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.png"
        draw_sweep(path, target.sweep)
        return base64.b64encode(path.read_bytes()).decode()


def _title(record: JobRecord) -> str:
    done = [name for name, target in record.targets.items() if target.result is not None]
    return f"Long context grafted on {', '.join(done) or 'nothing yet'}"


def _introduction(record: JobRecord) -> list[str]:
    failed = [name for name, target in record.targets.items() if target.failed is not None]
    count = len(record.targets)
    lines = [f"A job of regraft graft with {count} {'target' if count == 1 else 'targets'}."]
    if failed:
        lines.append(f"Failed: {', '.join(failed)}.")
    return lines


def _overview(record: JobRecord, results: dict[str, EvaluationRecord]) -> Rows:
    """A row for each target: its graft, and the scores that matter most."""
    rows: Rows = [["target", "graft", "context", "transfer", "retention", "largest logit change"]]
    for name, target in record.targets.items():
        transfer, retention = _ratios(results.get(name), recovered=target.recovered)
        rows.append(
            [
                name,
                target.how or "-",
                format_tokens(target.context) if target.context is not None else "-",
                transfer,
                retention,
                f"{target.change.largest:.3g}" if target.change is not None else "-",
            ]
        )
    return rows


def _ratios(result: EvaluationRecord | None, *, recovered: bool) -> tuple[str, str]:
    """(transfer at the greatest length, retention at the greatest length within the context)."""
    if result is None or not result.ratios or not result.overall_tasks:
        return "-", "-"
    role = "recovered" if recovered else "graft"
    by_length = result.ratios["all" if "all" in result.ratios else result.overall_tasks[0]]
    longest = max(by_length)
    ratio = format_ratio(by_length[longest].get(f"transfer {role}"))
    transfer = f"{ratio} at {format_tokens(longest)}"
    within = [length for length, ratios in by_length.items() if f"retention {role}" in ratios]
    if not within:
        return transfer, "-"
    length = max(within)
    ratio = format_ratio(by_length[length][f"retention {role}"])
    return transfer, f"{ratio} at {format_tokens(length)}"
