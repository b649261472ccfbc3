"""`regraft train`: a recipe from the YAML to the published folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from regraft import progress
from regraft.checkpoint.source import Checkpoint
from regraft.checkpoint.staging import Staging
from regraft.checkpoint.target import staging_folder
from regraft.data.sources import input_paths
from regraft.errors import InputError
from regraft.job import Job
from regraft.parallel import Mesh
from regraft.parallel.exchange.ulysses import check_heads
from regraft.rope import ContextSpec
from regraft.train.corpus import Corpus, text_of
from regraft.train.output import log as metrics
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.schema import Parallel, ToyModel
from regraft.train.step.rotary import head_size, stage_context
from regraft.units import format_tokens
from regraft.write import write_text

RECORD, STATES = "train.json", "states"


def train(
    recipe: str | Path,
    out: str | Path | None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train by the recipe into the folder `out`; its record, which is also `out`/train.json.

    Until it is done everything lies in a hidden folder beside `out`, metrics.jsonl too. Under
    torchrun every process calls this alike. dry_run: check everything, return the plan; `out` may
    be None then.

    Raises InputError (recipe, model, text, mesh), RegraftError (NaN), OutputError (disk).
    """
    if out is None:
        if not dry_run:
            raise InputError("train needs an output folder: regraft train recipe.yaml -o OUT")
        out = "out"
    read = Recipe.read(recipe)
    mesh = make_mesh(read.body.parallel, device)
    if mesh.rank:
        progress.configure(quiet=True)
    job = None
    if mesh.rank == 0:
        job = Job(out, inputs=_inputs(recipe, read), overwrite=overwrite, resume=resume,
                  keep_refused=True)  # fmt: skip
    target = Path(out).expanduser().resolve()
    _check_rows(read, mesh)
    metrics.check_track(read.body)
    with ExitStack() as stack, progress.without_others(), mesh.guard():
        spot = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="regraft-toy-")))
        source = _source(read, spot, mesh)
        base = stack.enter_context(Checkpoint.open(source))
        before = ContextSpec.from_config(base.config)
        heads = base.config.get("num_key_value_heads") or base.config["num_attention_heads"]
        check_heads(int(heads), mesh.ulysses)
        contexts = _contexts(read, base, before)
        tokenizer = _tokenizer(source, base)
        vocabulary = int(base.config["vocab_size"])
        corpus = Corpus(read, tokenizer, vocabulary, mesh)
        plan = make_plan(read, corpus, contexts, before)
        if dry_run:
            return {"kind": "training", "plan": plan}
        staging = None
        if job is not None:
            staging = stack.enter_context(
                job.start(read.canonical(), base.fingerprint(), mesh.size)
            )
            progress.note(f"Metrics as they come: {staging.folder / metrics.METRICS}")
        exported = torch.tensor(staging is not None and staging.done("exported") is not None)
        folder = staging_folder(target)
        mesh.wait()
        if not int(mesh.sum(exported.int())):
            _work(read, corpus, base, source, contexts, before, folder, staging, tokenizer)
        box: list[Any] = [None]
        if staging is not None:
            box[0] = json.loads((folder / RECORD).read_text())
            metrics.keep_offline(folder / STATES, folder, target)
            shutil.rmtree(folder / STATES, ignore_errors=True)
            staging.publish()
        mesh.wait()
        if mesh.size > 1:
            torch.distributed.broadcast_object_list(box)
    return dict(box[0])


def _work(
    recipe: Recipe,
    corpus: Corpus,
    base: Checkpoint,
    source: str,
    contexts: list[list[ContextSpec]],
    before: ContextSpec,
    folder: Path,
    staging: Staging | None,
    tokenizer: Any,
) -> None:
    """Load, train, export, and note that all is there but the publishing."""
    from regraft.adapters.extract.evidence import versions
    from regraft.train.loop import Loop
    from regraft.train.output.card import write_card
    from regraft.train.output.export import export_adapter, export_model, write_json
    from regraft.train.recovery import add_noise, begin_recovery
    from regraft.train.step.fsdp import shard
    from regraft.train.step.learner import load

    body, mesh = recipe.body, corpus.mesh
    learner = load(body, base, source, mesh)
    if body.method == "recover" and body.recover.noise:
        add_noise(learner, body.recover.noise, body.seed)
    shard(learner, body, mesh)
    states = folder / STATES

    def saved(step: int) -> None:
        if staging is not None:
            staging.record("state", step=step)

    loop = Loop(recipe, learner, corpus, contexts, folder, states, tokenizer, saved)
    if body.method == "recover":
        loop.recovery = begin_recovery(recipe, learner, corpus, before)
    place = loop.run()
    used = loop.contexts
    kind = body.export.kind
    if kind == "auto":
        kind = "adapter" if body.method == "lora" else "model"
    name = source if isinstance(body.model, str) else "toy"
    with progress.stage(f"Exporting the {kind}"):
        if kind == "adapter":
            export_adapter(folder, learner, base, (before, used[-1]), body, mesh, name)
        else:
            export_model(folder, learner, base, used[-1], body, mesh)
    lines = metrics.read(folder / metrics.METRICS) if staging is not None else []
    looks = metrics.read(folder / metrics.WATCH) if staging is not None else []
    record = {
        "schema_version": 1,
        "kind": "training",
        "export": kind,
        "recipe": body.model_dump(),
        "base": {
            "name": name,
            "revision": base.revision,
            "fingerprint": base.fingerprint(),
        },
        "context": {"base": before.to_json(), "stages": [spec.to_json() for spec in used]},
        "text": corpus.digests,
        "steps": place.learned,
        "stage_steps": [
            sum(line["stage"] == i + 1 for line in lines)
            - sum(lost["steps"] for lost in place.abandoned if lost["stage"] == i + 1)
            for i in range(len(body.stages))
        ],
        "tokens": place.learned_tokens,
        "abandoned": place.abandoned,
        "stopped": {str(stage + 1): reason for stage, reason in place.stopped.items()},
        "loss": {"first": lines[0]["loss"], "last": lines[-1]["loss"]} if lines else None,
        "drift": place.drifts,
        "watch": {"first": looks[0], "last": looks[-1]} if looks else None,
        "processes": loop.processes,
        "versions": versions(),
    }
    if staging is not None:
        with progress.stage("Drawing the curves"):
            metrics.draw(folder)
        write_json(folder / RECORD, record)
        write_card(folder, record, summary(record))
        write_text(folder / "recipe.yaml", recipe.document.text)
        staging.record("exported")


def _inputs(path: str | Path, recipe: Recipe) -> list[str | Path]:
    """Every file and folder that a training by this recipe reads; Hub ids among them."""
    body = recipe.body
    inputs: list[str | Path] = [path]
    if isinstance(body.model, str):
        inputs.append(body.model)
    if body.recover.teacher is not None:
        inputs.append(body.recover.teacher)
    if body.data.cache is not None:
        inputs.append(body.data.cache)
    for source in body.data.sources:
        inputs += input_paths(text_of(source, body.seed))
    return inputs


def make_mesh(parallel: Parallel, device: str) -> Mesh:
    """The recipe's mesh over the processes there are; whatever is 'auto' goes to one sequence
    where context is auto too, else to FSDP over more rows."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    given = {
        "context": parallel.context,
        "ulysses": parallel.ulysses,
        "shard": parallel.shard,
        "replicate": parallel.replicate,
    }
    free = [name for name, size in given.items() if size == "auto"]
    if world == 1 and all(size in ("auto", 1) for size in given.values()):
        return Mesh.create(1, 1, 1, 1, device=device)
    taker = "context" if "context" in free else ("shard" if "shard" in free else None)
    sizes: dict[str, Any] = {name: 1 if name in free else size for name, size in given.items()}
    if taker is not None:
        sizes[taker] = "auto"
    return Mesh.create(**sizes, algorithm=parallel.algorithm, device=device)


def make_plan(
    recipe: Recipe, corpus: Corpus, contexts: list[list[ContextSpec]], before: ContextSpec
) -> dict[str, Any]:
    """What will be done, for `--dry-run`. Raises InputError where a stage has no rows."""
    body = recipe.body
    plan: dict[str, Any] = {"method": body.method}
    plan["processes"] = corpus.mesh.describe()
    plan["context"] = before.describe()
    for name, tokens in corpus.tokens.items():
        held = len(corpus.held[name])
        plan[f"text of {name}"] = f"{len(tokens):,} documents, {tokens.total:,} tokens" + (
            f", {held} documents held out" if held else ""
        )
    for i, (stage, (spec, *others)) in enumerate(zip(body.stages, contexts, strict=True)):
        rows = corpus.stage(i)
        steps = recipe.steps(stage)
        warmup = (stage.schedule or body.schedule).warmup
        if warmup >= steps:
            progress.warn(
                f"Stage {i + 1} warms up for {warmup} steps and has {steps}: its rate never "
                f"reaches {stage.rate:g}."
            )
        wanted = steps * stage.batch
        parts = [
            f"{name} {share:.0%} ({share * wanted / len(rows.rows[name]):.2g} epochs)"
            for name, share in rows.mixture.shares.items()
        ]
        plan[f"stage {i + 1}"] = (
            f"{spec.describe()}; {steps:,} steps of {stage.batch} x "
            f"{format_tokens(rows.window)} = {wanted * rows.window:,} tokens at {stage.rate:g}; "
            + ", ".join(parts)
            + "".join(f"; where watch stops it, theta {other.theta:g}" for other in others)
        )
    return plan


def summary(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines a person wants to see after a training: (label, text)."""
    stages = [ContextSpec.from_json(item) for item in record["context"]["stages"]]
    before = ContextSpec.from_json(record["context"]["base"])
    lines = [
        ("context", f"{before.describe()}  ->  {stages[-1].describe()}"),
        ("trained", f"{record['steps']:,} steps, {record['tokens']:,} tokens"),
    ]
    if record["loss"]:
        lines.append(("loss", f"{record['loss']['first']:.3f} -> {record['loss']['last']:.3f}"))
    if record["watch"]:
        first, last = record["watch"]["first"], record["watch"]["last"]
        far = list(last["nll"])[-1]
        start = f"{first['nll'][far]:.3f} -> " if far in first["nll"] else ""
        lines.append((f"NLL at {far}", f"{start}{last['nll'][far]:.3f} nats"))
        if "needle" in last:
            start = f"{first['needle']['found']:.0%} -> " if "needle" in first else ""
            lines.append(("needles", f"{start}{last['needle']['found']:.0%} found"))
    if record["drift"]:
        first, last = record["drift"][0], record["drift"][-1]
        lines.append(
            ("drift", f"{first['drift']:+.4f} -> {last['drift']:+.4f} nats on short text, "
                      f"after {last['step']} steps")
        )  # fmt: skip
    lines += [
        (
            "begun again",
            f"stage {lost['stage']}, after {lost['steps']} steps at theta {lost['theta']:g}: "
            f"{lost['reason']}",
        )
        for lost in record["abandoned"]
    ]
    lines += [("stopped", f"stage {n}: {reason}") for n, reason in record["stopped"].items()]
    return lines


def _contexts(recipe: Recipe, base: Checkpoint, before: ContextSpec) -> list[list[ContextSpec]]:
    """Of each stage the RoPE it starts with, then those to fall back on."""
    from transformers import AutoConfig

    if before.is_layered:
        raise InputError(
            f"{base.name} rotates differently by layer type; training knows one RoPE for all."
        )
    if recipe.body.method == "recover":
        for i, stage in enumerate(recipe.body.stages):
            if stage.length > before.max_position_embeddings:
                raise recipe.error(
                    ("stages", i, "length"),
                    f"{base.name} serves {format_tokens(before.max_position_embeddings)} tokens; "
                    "recover within that, or extend it by method full or lora.",
                )
        return [[before]] * len(recipe.body.stages)
    config = dict(base.config)
    head = head_size(AutoConfig.for_model(config.pop("model_type"), **config))
    found = []
    for i, stage in enumerate(recipe.body.stages):
        tried = [stage, *(stage.model_copy(update={"theta": theta}) for theta in stage.fallback)]
        specs = [stage_context(before, recipe.body.rope, item, head) for item in tried]
        if specs[0].theta in stage.fallback:
            raise recipe.error(
                ("stages", i, "fallback"),
                f"theta {specs[0].theta:g} is what the stage starts with; leave it out.",
            )
        found.append(specs)
    return found


def _check_rows(recipe: Recipe, mesh: Mesh) -> None:
    for i, stage in enumerate(recipe.body.stages):
        if stage.batch % mesh.data_size:
            raise recipe.error(
                ("stages", i, "batch"),
                f"{stage.batch} rows do not divide over {mesh.data_size} data-parallel processes; "
                "give a multiple, or let `parallel` share sequences (context).",
            )


def _source(recipe: Recipe, spot: Path, mesh: Mesh) -> str:
    """Where the model lies; a toy is made first, by every process for itself."""
    if not isinstance(recipe.body.model, ToyModel):
        return recipe.body.model
    from regraft.train.toy_model import write_toy

    write_toy(spot / "toy", recipe.body.model.toy, recipe.body.seed)
    return str(spot / "toy")


def _tokenizer(source: str, base: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    name, _, revision = source.partition("@")
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision or None)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{base.name} has no tokenizer that can be loaded "
            f"({' '.join(str(error).split())[:150]}); put its files beside the model."
        ) from None
