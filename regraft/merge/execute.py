"""recipe -> checkpoint: every tensor streamed through its method, the context put in the config.

    from regraft.merge.execute import merge
    record = merge("recipe.yaml", "merged")

All checks come first (`plan`), then tensors are made one at a time in row blocks (`stream`) and
written through a staging folder, so memory depends on neither the models nor their largest tensor
and a killed run goes on with `resume`. What a method cannot do natively runs in mergekit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from regraft import progress
from regraft.adapters import evidence, format
from regraft.adapters.extract import module_seed
from regraft.checkpoint.sink import CheckpointWriter, Staging
from regraft.device import pick_device
from regraft.errors import InputError
from regraft.merge import card, conflicts, donors, mergekit
from regraft.merge.inputs import Inputs
from regraft.merge.methods.registry import get
from regraft.merge.plan import Plan, make_plan
from regraft.merge.recipe import Recipe, schema
from regraft.merge.stream import Tally, Workers, merged
from regraft.rope import ContextSpec
from regraft.units import parse_bytes

__all__ = ["merge", "schema", "summary"]

ENGINES = ("auto", "native", "mergekit")


def merge(
    recipe: str | Path,
    out: str | Path,
    *,
    engine: str = "auto",
    as_adapter: bool = False,
    max_shard_size: str | int | None = None,
    verify: bool = False,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write the merge that the YAML file `recipe` describes to the folder `out`; its record.

    engine: 'native' (float32 streams), 'mergekit' (a separate process), 'auto' (native wherever it
    can). as_adapter: write a LoRA adapter on base_model instead of a model. seed: of the
    stochastic methods, one per tensor. verify: read everything back. dry_run: only check, and
    return the plan.

    Raises InputError (the recipe, by line; models that do not fit), CheckpointError (broken
    models, NaN), LineageError (an adapter on a stranger), OutputError (disk).
    """
    if engine not in ENGINES:
        raise InputError(f"--engine '{engine}' is not one of {', '.join(ENGINES)}.")
    where = pick_device(device)
    shard_bytes = parse_bytes(max_shard_size) if max_shard_size is not None else None
    parsed = Recipe.read(recipe)
    with Inputs(parsed) as inputs:
        reason = mergekit.reason(parsed, inputs, engine)
        arguments = {"engine": engine, "seed": seed, "max_shard_size": shard_bytes}
        record: dict[str, Any] = {
            "schema_version": format.SCHEMA_VERSION,
            "kind": "merge",
            "recipe": parsed.document.text,
            "method": parsed.body.merge_method,
            "engine": "native" if reason is None else "mergekit",
            "engine_why": reason,
            "inputs": [one.record() for one in inputs],
            "arguments": arguments,
            "versions": evidence.versions(),
        }
        if reason is not None:
            raise NotImplementedError
        plan = make_plan(parsed, inputs, get(parsed.body.merge_method), shard_bytes)
        files = donors.tokenizer_files(parsed, inputs, plan.donor)
        record |= _header(plan, files)
        for text in plan.notes:
            progress.warn(text)
        if dry_run:
            return {**record, "plan": _plan_lines(record, plan, inputs)}
        progress.note(f"config from {plan.donor}, {plan.donor_why}; tokenizer from {files.donor}")
        job = hashlib.sha256(json.dumps([record, where.type], sort_keys=True).encode()).hexdigest()
        with Staging(
            Path(out), job=job, overwrite=overwrite, resume=resume, inputs=inputs.paths()
        ) as staging:
            writer = CheckpointWriter(staging, plan.shards, verify=verify)
            facts = _stream(plan, parsed.body.scale, seed, writer, staging, where)
            record |= conflicts.report(plan, facts)
            donors.write(writer, staging.folder, plan.config, files)
            text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
            writer.add_file(format.RECORD, text.encode())
            card.write(staging.folder, record, summary(record))
            writer.finish()
            staging.publish()
    return record


def _header(plan: Plan, files: donors.Files) -> dict[str, Any]:
    return {
        "donor": {"config": str(plan.donor), "why": plan.donor_why, **files.to_json()},
        "context": {"output": plan.context.to_json(), "policy": plan.context_why},
        "notes": plan.notes,
    }


def _stream(
    plan: Plan,
    scale: float | None,
    seed: int,
    writer: CheckpointWriter,
    staging: Staging,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """Write every tensor; output tensor -> what was learnt of it."""
    facts: dict[str, dict[str, Any]] = {}
    with (
        Workers(device) as workers,
        progress.bar("Merging", plan.write_bytes, unit="bytes") as bar,
    ):
        for output in plan.outputs:
            noted = staging.done(f"merge:{output.name}")
            if noted is not None and writer.finished(output.name):
                facts[output.name] = noted
            else:
                tally = Tally()
                own = module_seed(seed, output.name)
                blocks = merged(output, plan.method, own, scale, workers, tally)
                writer.write(output.name, blocks)
                facts[output.name] = {**tally.facts(), **conflicts.measure(output, tally)}
                staging.record(f"merge:{output.name}", **facts[output.name])
            bar.advance(output.nbytes)
    return facts


def _plan_lines(record: dict[str, Any], plan: Plan, inputs: Inputs) -> dict[str, str]:
    raise NotImplementedError


def summary(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines a person wants to see after a merge: (label, text)."""
    context = ContextSpec.from_json(record["context"]["output"])
    totals, donor = record["totals"], record["donor"]
    return [
        ("method", f"{record['method']}, {len(record['inputs'])} models ({record['engine']})"),
        ("context", f"{context.describe()} ({record['context']['policy']})"),
        ("config", f"of {donor['config']} ({donor['why']})"),
        ("tokenizer", f"of {donor['tokenizer']}"),
        ("tensors", f"{totals['tensors']}"),
        (
            "lost to storage",
            f"{totals['lost_to_storage']:.2%} of the merged change, by rounding once",
        ),
    ]
