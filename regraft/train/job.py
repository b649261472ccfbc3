"""`regraft train`: from a recipe to the published folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from regraft import progress
from regraft.checkpoint.config import hide_bars
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.staging import Staging
from regraft.checkpoint.write.target import staging_folder
from regraft.device import deterministic_algorithms, use_expandable_segments
from regraft.errors import InputError
from regraft.job import Job
from regraft.records import ModelRecord, Plain, read_record, versions, write_record
from regraft.train.loop import Loop
from regraft.train.output import curves, log
from regraft.train.output.card import write_card
from regraft.train.output.export import export_adapter, export_model
from regraft.train.output.summary import summary
from regraft.train.output.trackers import save_offline_runs
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe_mesh import make_mesh
from regraft.train.record import (
    LossChange,
    StepRecord,
    TrainingContext,
    TrainingRecord,
    ValidationChange,
    ValidationRecord,
)
from regraft.train.recovery import add_noise, begin_recovery
from regraft.train.run_state import RunState
from regraft.train.selection import choice_of
from regraft.train.setup import (
    Run,
    describe_run,
    input_files,
    model_source,
    prepare_run,
    warn_of_devices,
)
from regraft.train.source_losses import SourceRows, compare, token_shares
from regraft.train.step.fsdp import shard
from regraft.train.step.learner import load
from regraft.write import write_text

RECORD, STATES = "train.json", "states"


def train_model(
    recipe: str | Path | Recipe,
    out: str | Path | None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> TrainingRecord:
    """Train by the recipe, a YAML file or a `Recipe`, into the folder `out`; returns its record,
    which is `out`/train.json.

    Until the training is done all its files are in a hidden folder beside `out`, metrics.jsonl too.
    Under torchrun every process makes the same call. dry_run: check everything and return a
    record with a `plan`; `out` may be None then.

    Raises InputError (recipe, model, text, mesh), RegraftError (NaN), OutputError (disk).
    """
    if out is None:
        if not dry_run:
            raise InputError("train needs an output folder: regraft train recipe.yaml -o OUT")
        out = "out"
    parsed = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    use_expandable_segments()
    mesh = make_mesh(parsed.body, device)
    if mesh.rank:
        progress.configure(quiet=True)
    job = None
    if mesh.rank == 0:
        job = Job(out, inputs=input_files(parsed), overwrite=overwrite, resume=resume,
                  keep_refused=True)  # fmt: skip
    target = Path(out).expanduser().resolve()
    with ExitStack() as stack, hide_bars(), mesh.guard():
        if parsed.body.deterministic:
            stack.enter_context(deterministic_algorithms())
        toys = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="regraft-toy-", ignore_cleanup_errors=True)
            )
        )
        source = model_source(parsed, toys)
        base = stack.enter_context(Checkpoint.open(source))
        run = prepare_run(parsed, mesh, source, base)
        if dry_run:
            return _record(run, RunState(), plan=describe_run(run))
        warn_of_devices(run)
        for i, contexts in enumerate(run.contexts, 1):
            if contexts.theta_note is not None:
                progress.note(f"stage {i}: {contexts.theta_note}")
        staging = None
        if job is not None:
            staging = stack.enter_context(
                job.start(parsed.canonical(), base.fingerprint(), mesh.size)
            )
            progress.note(f"Metrics during the run: {staging.folder / log.METRICS}")
        exported = torch.tensor(staging is not None and staging.done("exported") is not None)
        folder = staging_folder(target)
        mesh.wait()
        if not int(mesh.sum(exported.int())):
            _work(run, folder, staging)
        box: list[Any] = [None]
        if staging is not None:
            box[0] = read_record(folder / RECORD, TrainingRecord, "start again with --overwrite")
            save_offline_runs(folder / STATES, folder, target)
            shutil.rmtree(folder / STATES, ignore_errors=True)
            staging.publish()
        mesh.wait()
        if mesh.size > 1:
            torch.distributed.broadcast_object_list(box)
    assert isinstance(box[0], TrainingRecord)
    return box[0]


def _work(run: Run, folder: Path, staging: Staging | None) -> None:
    """Load, train and export into `folder`. staging: on the first process; its journal says when
    everything is written and only publishing is missing."""
    recipe, body, mesh, base = run.recipe, run.recipe.body, run.mesh, run.base
    learner = load(body, base, mesh)
    if body.method == "recover" and body.recover.noise:
        add_noise(learner, body.recover.noise, body.seed)
    shard(learner, body, mesh)

    def saved(step: int) -> None:
        if staging is not None:
            staging.record("state", step=step)

    contexts = [stage.attempts for stage in run.contexts]
    loop = Loop(
        recipe, learner, run.corpus, contexts, folder, folder / STATES, run.tokenizer, saved
    )
    if body.method == "recover":
        loop.recovery = begin_recovery(recipe, learner, run.corpus, run.before, folder / STATES)
    rows = SourceRows(run.corpus, run.before.max_position_embeddings)
    before = rows.measure(learner, run.before)
    state = loop.run()
    last = loop.contexts[-1]
    after = rows.measure(learner, last)
    with progress.stage(f"Exporting the {'adapter' if run.exports_adapter else 'model'}"):
        adapter = None
        if run.exports_adapter:
            adapter = export_adapter(
                folder, learner, base, (run.before, last), body, mesh, run.name
            )
        else:
            export_model(folder, learner, base, last, body, mesh)
    if staging is not None:
        with progress.stage("Drawing the curves"):
            curves.draw_curves(folder)
        record = _record(run, state, loop, log.read_steps(folder), log.read_validations(folder))
        shares = token_shares(recipe, record.stage_steps)
        record = replace(record, sources=compare(before, after, shares))
        write_record(folder / RECORD, record)
        write_card(folder, record, body, summary(record), adapter)
        write_text(folder / "recipe.yaml", recipe.document.text)
        staging.record("exported")


def _record(
    run: Run,
    state: RunState,
    loop: Loop | None = None,
    steps: Sequence[StepRecord] = (),
    validations: Sequence[ValidationRecord] = (),
    plan: dict[str, Plain] | None = None,
) -> TrainingRecord:
    """The record of a run at `state`. loop: None before it started."""
    body, base = run.recipe.body, run.base
    contexts = [stage.first for stage in run.contexts] if loop is None else loop.contexts
    choice = watch = None
    if state.points and body.recover.veto is not None:
        choice = choice_of(state.points, body.recover.veto, list(validations[0].nll)[-1])
    if validations:
        exported = [line for line in validations if choice is None or line.step == choice.step]
        watch = ValidationChange(first=validations[0], last=exported[-1])
    return TrainingRecord(
        export="adapter" if run.exports_adapter else "model",
        recipe=body.model_dump(),
        base=ModelRecord(
            name=run.name,
            revision=base.revision,
            fingerprint=base.fingerprint(),
            model_type=base.config.get("model_type"),
        ),
        context=TrainingContext(
            base=run.before.to_record(), stages=[spec.to_record() for spec in contexts]
        ),
        text=run.corpus.digests,
        steps=state.learned_steps,
        stage_steps=[
            sum(line.stage == i + 1 for line in steps)
            - sum(lost.steps for lost in state.abandoned if lost.stage == i + 1)
            for i in range(len(body.stages))
        ],
        tokens=state.learned_tokens,
        abandoned=state.abandoned,
        stopped={str(stage + 1): reason for stage, reason in state.stopped.items()},
        loss=LossChange(first=steps[0].loss, last=steps[-1].loss) if steps else None,
        drift=state.drifts,
        watch=watch,
        choice=choice,
        processes=run.mesh.describe() if loop is None else loop.processes,
        versions=versions(),
        plan=plan,
    )
