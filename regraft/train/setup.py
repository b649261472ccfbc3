"""Preparation and checks before the first step: mesh, model, contexts, text.

The dry run and the real run both call `prepare_run`, so that a dry run reports every mistake. Cheap
checks come first; reading and tokenising the text comes last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.checkpoint.config import load_config
from regraft.checkpoint.dtypes import OUTPUT_DTYPES
from regraft.checkpoint.hf.pretrained import check_tensors
from regraft.checkpoint.hf.tokenizer import load_tokenizer
from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.data.sources import input_paths
from regraft.parallel import Mesh
from regraft.records import Plain
from regraft.rope import ContextSpec
from regraft.train.contexts import StageContexts, stage_contexts
from regraft.train.corpus import Corpus, text_of
from regraft.train.estimate.plan import StageEstimate, estimate_run
from regraft.train.estimate.plan_text import describe
from regraft.train.estimate.shortage import different_gpus, memory_shortages
from regraft.train.output.trackers import check_tracker
from regraft.train.recipe.model import ToyModel
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.schema import exports_adapter
from regraft.train.recovery import check_recovery
from regraft.train.step.fused import check_fused
from regraft.train.step.learner import Learner, untrained_learner
from regraft.train.toy_model import write_toy
from regraft.train.validation import Validation
from regraft.units import format_bytes, format_tokens

_STATE_BYTES = 12  # of a trained parameter in a training state: itself and two moments


@dataclass(frozen=True)
class Run:
    """A training that has passed every check. source: folder or Hub id of the model; name: that
    name, or 'toy', for the record; shapes: the model on the meta device; before: its context."""

    recipe: Recipe
    mesh: Mesh
    source: str
    name: str
    base: Checkpoint
    before: ContextSpec
    contexts: list[StageContexts]
    tokenizer: Any
    corpus: Corpus
    shapes: Learner

    @property
    def exports_adapter(self) -> bool:
        """Whether the run writes an adapter, and not a model."""
        return exports_adapter(self.recipe.body)


def prepare_run(recipe: Recipe, mesh: Mesh, source: str, base: Checkpoint) -> Run:
    """Check the whole recipe against model, mesh and text. Collective.

    base: the checkpoint at `source`. Raises InputError for every mistake that can be seen before
    the first step.
    """
    body = recipe.body
    name = source if isinstance(body.model, str) else "toy"
    check_tracker(body)
    _check_batches(recipe, mesh)
    check_fused(body.memory, mesh.device)
    before = checkpoint_context(base)
    check_tensors(base, load_config(base.config, name))
    contexts = stage_contexts(recipe, name, base.config)
    shapes = untrained_learner(body, base.config, name, mesh)
    tokenizer = load_tokenizer(base)
    vocabulary = int(base.config["vocab_size"])
    corpus = Corpus(recipe, tokenizer, vocabulary, mesh)
    for i, stage in enumerate(body.stages):
        corpus.stage(i)
        _warn_of_warmup(recipe, i)
        if body.watch is not None:
            Validation(corpus, body.watch, recipe.watch_length(stage), tokenizer)
    if body.method == "recover":
        check_recovery(recipe, corpus, vocabulary)
    return Run(recipe, mesh, source, name, base, before, contexts, tokenizer, corpus, shapes)


def describe_run(run: Run) -> dict[str, Plain]:
    """The plan of a training, for `--dry-run`: label -> text or number."""
    recipe, corpus, body = run.recipe, run.corpus, run.recipe.body
    plan: dict[str, Plain] = {
        "method": body.method,
        "processes": run.mesh.describe(),
        "context": run.before.describe(),
    }
    for name, tokens in corpus.tokens.items():
        held_out = len(corpus.held_out[name])
        plan[f"text of {name}"] = (
            f"{_documents(len(tokens))}, {tokens.total:,} tokens"
            + ("" if tokens.chat is None else f", {tokens.chat.learned:,} of them learned")
            + (f", {_documents(held_out)} held out" if held_out else "")
        )
    estimates = estimate_run(recipe, run.shapes, run.mesh)
    for i, (stage, contexts) in enumerate(zip(body.stages, run.contexts, strict=True)):
        rows = corpus.stage(i)
        steps = recipe.steps(stage)
        count = steps * stage.batch
        shares = [
            f"{name} {share:.0%} ({share * count / len(rows.rows[name]):.2g} epochs)"
            for name, share in rows.mixture.shares.items()
        ]
        plan[f"stage {i + 1}"] = (
            f"{contexts.first.describe()}; {steps:,} steps of {stage.batch} x "
            f"{format_tokens(rows.window)} = {count * rows.window:,} tokens at {stage.rate:g}; "
            + ", ".join(shares)
            + "".join(f"; where watch stops it, theta {s.theta:.15g}" for s in contexts.fallbacks)
        )
        if contexts.theta_note is not None:
            plan[f"theta of stage {i + 1}"] = contexts.theta_note
        if estimates:
            plan[f"cost of stage {i + 1}"] = describe(estimates[i])
    plan |= _disk(run)
    if estimates:
        plan["seconds"] = round(sum(estimate.seconds for estimate in estimates), 1)
        plan["estimates"] = "memory and time; the time may be wrong by a factor of two"
        _warn_of_memory(run, estimates)
    return plan


def _documents(count: int) -> str:
    return "1 document" if count == 1 else f"{count:,} documents"


def input_files(recipe: Recipe) -> list[str | Path]:
    """All files, folders and Hub ids that a training by this recipe reads."""
    body = recipe.body
    inputs: list[str | Path] = [recipe.document.name]
    if isinstance(body.model, str):
        inputs.append(body.model)
    if body.recover.teacher is not None:
        inputs.append(body.recover.teacher)
    if body.data.cache is not None:
        inputs.append(body.data.cache)
    for source in body.data.sources:
        inputs += input_paths(text_of(source, body.seed))
    return inputs


def model_source(recipe: Recipe, folder: Path) -> str:
    """Folder or Hub id of the model. A toy is first written into `folder`, by every process."""
    if not isinstance(recipe.body.model, ToyModel):
        return recipe.body.model
    write_toy(folder / "toy", recipe.body.model.toy, recipe.body.seed)
    return str(folder / "toy")


def _check_batches(recipe: Recipe, mesh: Mesh) -> None:
    for i, stage in enumerate(recipe.body.stages):
        if stage.batch % mesh.data_size:
            raise recipe.error(
                ("stages", i, "batch"),
                f"{stage.batch} rows do not divide over {mesh.data_size} data-parallel processes; "
                "give a multiple, or let `parallel` share sequences (context).",
            )


def _warn_of_warmup(recipe: Recipe, number: int) -> None:
    stage = recipe.body.stages[number]
    steps, warmup = recipe.steps(stage), (stage.schedule or recipe.body.schedule).warmup
    if warmup >= steps:
        progress.warn(
            f"Stage {number + 1} warms up for {warmup} steps and has {steps}: its rate never "
            f"reaches {stage.rate:g}."
        )


def warn_of_devices(run: Run) -> None:
    """Warn before the first step of GPUs that differ or that the plan says are too small.
    Collective."""
    if run.mesh.device.type != "cuda":  # the rate of a CPU is measured, which every start would pay
        return
    if (note := different_gpus(run.mesh)) is not None:
        progress.warn(note)
    _warn_of_memory(run, estimate_run(run.recipe, run.shapes, run.mesh))


def _warn_of_memory(run: Run, estimates: list[StageEstimate]) -> None:
    for line in memory_shortages(run.recipe, run.shapes, run.mesh, estimates):
        progress.warn(line)


def _disk(run: Run) -> dict[str, str]:
    """The plan's line on disk space: of the output, and of training states during the run."""
    dtype = OUTPUT_DTYPES.get(run.recipe.body.export.dtype)
    stored = next(iter(run.base.tensors.values())).dtype
    trained = sum(parameter.numel() for parameter in run.shapes.trained().values())
    if run.exports_adapter:
        output = trained * (dtype or stored).itemsize
    elif dtype is None:
        output = run.base.total_bytes
    else:
        output = dtype.itemsize * sum(math.prod(i.shape) for i in run.base.tensors.values())
    states = 2 * trained * _STATE_BYTES  # one is deleted after the next is complete
    return {"disk": f"{format_bytes(output)}, and up to {format_bytes(states)} while it runs"}
