"""`regraft graft`: a recipe from the YAML to the page, stage by stage.

    record = graft_model("recipe.yaml", "out")

Everything is checked before the first stage starts. A finished stage whose inputs and arguments are
unchanged is not run again, so a killed job, run again, continues where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.checkpoint.write.target import check_overlap
from regraft.device import pick_device
from regraft.document import Document
from regraft.errors import InputError, RegraftError
from regraft.graft.blocks import refuse_many_processes
from regraft.graft.merge_job import RESULT, MergeJob
from regraft.graft.plan import make_stages, merge_stages, select
from regraft.graft.recipe import Recipe
from regraft.graft.record import FILE, JobRecord, StageRecord
from regraft.graft.report.page import write_pages
from regraft.graft.results import target_records
from regraft.graft.schema import in_recipe_words
from regraft.graft.stages.evaluation import Compare
from regraft.graft.stages.package import Package
from regraft.graft.stages.stage import Context, Stage
from regraft.graft.timing import Timing
from regraft.graft.workspace import Workspace
from regraft.records import versions, write_record
from regraft.units import format_duration, plan_rows
from regraft.write import write_text


@dataclass(frozen=True)
class StagePlan:
    """What a stage will do, on one line. seconds: its estimated time, None where unknown."""

    text: str
    seconds: float | None


@progress.warn_once()
def graft_model(
    recipe: str | Path | Document,
    out: str | Path,
    *,
    until: str | None = None,
    from_stage: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> JobRecord:
    """Run a recipe, a YAML file or what is in one, in the folder `out`. Returns the record,
    `out`/graft.json.

    The same recipe may be run again: it continues where it was interrupted. For a changed recipe
    give `resume`, which runs the stages that the change affects, or `overwrite`, which runs all.
    until: the last stage to run, by name or kind; from_stage: this stage and those after it are
    run even if unchanged, and those before must be finished. dry_run: check everything and return
    a record with a `plan`.

    A target that fails does not stop the others. Raises InputError, before the first stage, for
    whatever the commands of the stages refuse; RegraftError at the end, naming the failed targets.
    """
    document = recipe if isinstance(recipe, Document) else Document.read(recipe)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise refuse_many_processes(document.value)
    kind = pick_device(device).type
    workspace = Workspace(out)
    stages, names = _stages(document, workspace, device, overwrite)
    workspace.check(document.text, kind, overwrite=overwrite, resume=resume)
    paths = [] if isinstance(recipe, Document) else [recipe]
    check_overlap(workspace.target, [*paths, *_inputs(stages)])
    last = max(select(stages, until, "--until")) if until is not None else len(stages) - 1
    first = min(select(stages, from_stage, "--from")) if from_stage is not None else None
    selected = stages[: last + 1]
    again = _again(selected, first, overwrite)
    plans = _plan(selected, again)
    if dry_run:
        texts = {name: plan.text for name, plan in plans.items()}
        return _record(document.text, names, stages, {}, plan=texts)
    with workspace.locked():
        for stage in again:
            stage.forget()
        workspace.begin(document.text, kind)
        failed = _run(selected, plans)
        workspace.remove_others([stage.name for stage in stages], [stage.out for stage in stages])
        record = _record(document.text, names, stages, failed)
        write_text(workspace.folder / "recipe.yaml", document.text)
        write_record(workspace.folder / FILE, record)
        with progress.stage("Writing the page"):
            write_pages(workspace.folder, record)
    if failed:
        listed = "; ".join(f"{name} ({text.rstrip('.')})" for name, text in failed.items())
        others = f" The others are in {workspace.folder}." if len(failed) < len(names) else ""
        raise RegraftError(f"{len(failed)} of {len(names)} targets failed: {listed}.{others}")
    return record


def _stages(
    document: Document, workspace: Workspace, device: str, overwrite: bool
) -> tuple[list[Stage], list[str]]:
    """The stages of a graft or merge recipe, and the names of its targets."""
    if isinstance(document.value, dict) and "merge_method" in document.value:
        merge = MergeJob(document)
        return merge_stages(merge, Context(workspace, device, 0, overwrite)), [RESULT]
    recipe = Recipe(document)
    context = Context(workspace, device, recipe.body.seed, overwrite)
    return make_stages(recipe, context), [target.name for target in recipe.targets]


def _inputs(stages: Iterable[Stage]) -> list[str | Path]:
    """Every file and folder that stages read but do not make."""
    paths: list[str | Path] = []
    for stage in stages:
        paths += stage.files
        paths += [source.location for source in stage.given()]
    return paths


def _again(stages: list[Stage], first: int | None, overwrite: bool) -> list[Stage]:
    """The stages to run even if they are finished. Raises InputError for an unfinished stage before
    the first of them."""
    if overwrite or first is None:
        return stages if overwrite else []
    for stage in stages[:first]:
        if not stage.is_finished():
            raise InputError(
                f"--from {stages[first].name}: {stage.name} comes before it and is not finished; "
                "leave --from out."
            )
    return stages[first:]


def _plan(stages: list[Stage], again: list[Stage]) -> dict[str, StagePlan]:
    """Check every stage that will run. Returns the plan of each, by stage name."""
    plans = {}
    for stage in stages:
        if stage not in again and stage.is_finished():
            plans[stage.name] = StagePlan(f"finished in {stage.path}", 0.0)
            continue
        try:
            plan = stage.check()
        except InputError as error:
            raise type(error)(f"{stage.name}: {in_recipe_words(str(error))}") from None
        plans[stage.name] = StagePlan(_describe(stage, plan), _seconds(stage, plan))
    return plans


def _describe(stage: Stage, plan: Mapping[str, Any]) -> str:
    """The plan of a stage on one line."""
    steps = [f"{label} {text}" for label, text in plan_rows(plan)]
    if not steps and not all(need.is_finished() for need in stage.needs()):
        steps = ["checked in full when its inputs are made"]
    return "; ".join([f"{', '.join(stage.reads())} -> {stage.path}", *steps])


def _seconds(stage: Stage, plan: Mapping[str, Any]) -> float | None:
    """The estimated time of a stage; None where it is unknown."""
    if isinstance(stage, Compare | Package):  # a forward pass, and links to files
        return 0.0
    seconds = plan.get("seconds")
    return None if seconds is None else float(seconds)


def _run(stages: list[Stage], plans: Mapping[str, StagePlan]) -> dict[str, str]:
    """Run the stages that are not finished. Returns failed target -> error; an error in a stage
    that all targets share is raised."""
    failed: dict[str, str] = {}
    timing = Timing({stage.name: plans[stage.name].seconds for stage in stages})
    with progress.whole(timing.describe):
        for number, stage in enumerate(stages, 1):
            label = f"[{number}/{len(stages)}] {stage.name}"
            if stage.target in failed or stage.is_finished():
                timing.leave_out(stage.name)
                if stage.target not in failed:
                    progress.note(f"{label}: unchanged")
                continue
            timing.start(stage.name)
            try:
                with progress.hide_notes():
                    stage.complete()
            except (RegraftError, MemoryError, OSError) as error:
                if stage.target is None:
                    raise
                timing.leave_out(stage.name)
                message = in_recipe_words(str(error))
                failed[stage.target] = f"{stage.name}: {message}"
                progress.warn(f"{stage.target} fails in {stage.name}: {message}")
            else:
                progress.note(f"{label}: {format_duration(timing.finish())}")
    return failed


def _record(
    recipe: str,
    names: list[str],
    stages: list[Stage],
    failed: Mapping[str, str],
    plan: dict[str, str] | None = None,
) -> JobRecord:
    return JobRecord(
        recipe=recipe,
        stages=[
            StageRecord(
                name=stage.name, out=stage.out, key=stage.key() if stage.is_finished() else None
            )
            for stage in stages
        ],
        targets=target_records(names, stages, failed),
        versions=versions(),
        plan=plan,
    )
