"""recipe -> checkpoint: every tensor streamed through its method, the context put in the config.

    from regraft.merge.execute import merge
    record = merge("recipe.yaml", "merged")

All checks come first (`plan`), then tensors are made one at a time in row blocks (`stream`) and
written through a staging folder, so memory depends on neither the models nor their largest tensor
and a killed run goes on with `resume`. What a method cannot do natively runs in mergekit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from regraft import progress
from regraft.adapters.folder import RECORD
from regraft.checkpoint.sink import CheckpointWriter
from regraft.checkpoint.staging import Staging
from regraft.device import each, full_precision, pick_device
from regraft.errors import InputError
from regraft.job import Job
from regraft.merge import card, conflicts, mergekit
from regraft.merge import into_adapter as factors
from regraft.merge import tokenizer_files as donors
from regraft.merge.donor import choose_context, find_donor
from regraft.merge.inputs import Inputs
from regraft.merge.match import check_relatives, expert_notes
from regraft.merge.methods.blocks import BLOCK
from regraft.merge.methods.registry import get
from regraft.merge.plan import Output, Plan, make_plan
from regraft.merge.recipe import Recipe
from regraft.merge.schema import schema
from regraft.merge.stream import Tally, merged, threads
from regraft.record import (
    SCHEMA_VERSION,
    AdapterRecord,
    Plain,
    derive_seed,
    dump_json,
    versions,
)
from regraft.rope import ContextSpec
from regraft.units import format_bytes, parse_bytes

__all__ = ["merge", "schema", "summary"]

# Bytes read a second on two cores, measured with benchmarks/merge.py.
_RATES = {"": 0.5e9}
ENGINES = ("auto", "native", "mergekit")


@full_precision()
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
) -> dict[str, Any] | AdapterRecord:
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
    job = Job(out, inputs=[recipe], overwrite=overwrite, resume=resume)
    parsed = Recipe.read(recipe)
    with Inputs(parsed) as inputs:
        job.add_inputs(inputs.paths())
        reason = mergekit.reason(parsed, inputs, engine)
        arguments: dict[str, Plain] = {
            "engine": engine, "seed": seed, "max_shard_size": shard_bytes, "as_adapter": as_adapter,
        }  # fmt: skip
        record: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "kind": "merge",
            "recipe": parsed.document.text,
            "method": parsed.body.merge_method,
            "engine": "native" if reason is None else "mergekit",
            "engine_why": reason,
            "inputs": [one.record() for one in inputs],
            "arguments": arguments,
            "versions": versions(),
        }
        donor, why = find_donor(parsed, inputs)
        notes = check_relatives(parsed, inputs, donor)
        context, policy = choose_context(parsed, inputs, donor)
        files = donors.choose(parsed, inputs, donor)
        plan = None
        if reason is None:
            method = get(parsed.body.merge_method)
            notes += expert_notes(inputs, method)
            vocabulary = None
            if mergekit.tokenizer_key(parsed) is not None:
                vocabulary = donors.compare_vocabularies(inputs).rows
            elif (difference := donors.compare_vocabularies(inputs).difference) is not None:
                notes.append(
                    f"the vocabularies differ and are not aligned ({difference}); add 'tokenizer: "
                    "{source: base}' if that is not meant"
                )
            plan = make_plan(
                parsed, inputs, method, donor, context,
                vocabulary=vocabulary, max_shard_bytes=shard_bytes,
            )  # fmt: skip
        else:
            mergekit.check(parsed, inputs)
        if as_adapter:
            if plan is None:
                raise InputError(f"--as-adapter cannot run in mergekit, but {reason}.")
            factors.check(parsed, inputs, plan)
        record |= {
            "donor": {"config": str(donor), "why": why, **files.to_json()},
            "context": {"output": context.to_json(), "policy": policy},
            "notes": notes,
        }
        for text in notes:
            progress.warn(text)
        if dry_run:
            return {**record, "plan": _described(record, inputs, plan, where)}
        if reason is not None:
            progress.note(f"{reason}: merging in mergekit, a separate process")
        progress.note(f"config from {donor} ({why}), tokenizer from {files.donor.name}")
        report = None
        with job.start(record, where.type) as staging:
            if as_adapter:
                assert plan is not None
                made = factors.write(
                    parsed, inputs, plan, context, staging,
                    seed=seed, device=where, arguments=arguments,
                )  # fmt: skip
                card.write(staging.folder, record | {"kind": "adapter"}, summary(made), None)
                staging.publish()
                return made
            if plan is not None:
                writer = CheckpointWriter(staging, plan.shards, verify=verify)
                donors.write(writer, staging.folder, plan.config, files)
                sums = _stream(plan, parsed.body.scale, seed, writer, staging, where)
                report = conflicts.report(plan.outputs, sums)
                record |= report.to_json()
            else:
                result = mergekit.run(
                    parsed, inputs, donor, context, files, staging,
                    seed=seed, device=where, max_shard_bytes=shard_bytes, verify=verify,
                )  # fmt: skip
                writer = result.writer
                donors.write(writer, staging.folder, result.config, result.files)
                if result.files is not files:
                    record["donor"]["tokenizer"] = "mergekit, which aligned the vocabularies"
                record |= {"totals": {"tensors": len(result.tensors)}, "tensors": result.tensors}
            writer.add_file(RECORD, dump_json(record))
            with progress.stage("Writing the card"):
                card.write(staging.folder, record, summary(record), report)
            writer.finish()
            staging.publish()
    return record


def _stream(
    plan: Plan,
    scale: float | None,
    seed: int,
    writer: CheckpointWriter,
    staging: Staging,
    device: torch.device,
) -> dict[str, conflicts.TensorSums]:
    """Write every tensor; output tensor -> what was measured of it."""
    sums: dict[str, conflicts.TensorSums] = {}
    with progress.bar("Merging", plan.write_bytes, unit="bytes") as bar:

        def make(output: Output) -> None:
            tally = Tally()
            own = derive_seed(seed, output.name)
            writer.write(output.name, merged(output, plan.method, own, scale, device, tally))
            sums[output.name] = conflicts.measure(output, tally)
            staging.record(f"merge:{output.name}", **vars(sums[output.name]))
            bar.advance(output.nbytes)

        missing = []
        for output in plan.outputs:
            done = staging.done(f"merge:{output.name}")
            if done is not None and writer.finished(output.name):
                sums[output.name] = conflicts.TensorSums(**done)
                bar.advance(output.nbytes)
            else:
                missing.append(output)
        each(missing, make, threads(plan.method, device), size=lambda output: output.nbytes)
    return sums


def _described(
    record: dict[str, Any], inputs: Inputs, plan: Plan | None, device: torch.device
) -> dict[str, str]:
    """What a merge will do, for `--dry-run`: label -> text."""
    context, donor = ContextSpec.from_json(record["context"]["output"]), record["donor"]
    lines = {f"input {i}": str(one) for i, one in enumerate(inputs, 1)}
    lines |= {
        "method": record["method"],
        "engine": _engine(record),
        "context": f"{context.describe()} ({record['context']['policy']})",
        "config": f"of {donor['config']} ({donor['why']})",
        "tokenizer": f"from {donor['tokenizer']}",
    }
    if plan is None:
        return lines
    by_role: dict[str, list[Output]] = {}
    for output in plan.outputs:
        by_role.setdefault(conflicts.role(output), []).append(output)
    everywhere = _parameters(plan.outputs)
    one_for_all = all(_parameters(outputs) == everywhere for outputs in by_role.values())
    if one_for_all and everywhere:
        lines["parameters"] = everywhere
    for name, outputs in by_role.items():
        shapes = " or ".join(str(list(shape)) for shape in sorted({o.shape for o in outputs})[:2])
        said = "" if one_for_all else _parameters(outputs)
        lines[name] = f"{len(outputs)} x {shapes}{', ' if said else ''}{said}"
    seconds = plan.read_bytes / _RATES.get(record["method"], _RATES[""])
    return lines | {
        "reads": format_bytes(plan.read_bytes),
        "writes": format_bytes(plan.write_bytes),
        "peak memory": f"about {format_bytes(peak_memory(plan, device))}",
        "time": f"about {max(1, round(seconds))} s on two cores",
    }


def _parameters(outputs: Sequence[Output]) -> str:
    """The parameters of some tensors, from least to most where they differ."""
    names = outputs[0].params
    return ", ".join(f"{name} {_range([out.params[name] for out in outputs])}" for name in names)


def _range(values: list[Any]) -> str:
    if isinstance(values[0], list):
        each = [_range(list(column)) for column in zip(*values, strict=False)]
        return each[0] if len(set(each)) == 1 else f"({', '.join(each)})"
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    if len(set(shown)) == 1:
        return shown[0]
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values):
        return " or ".join(dict.fromkeys(shown))
    return f"{min(numbers):.4g} to {max(numbers):.4g}"


def peak_memory(plan: Plan, device: torch.device) -> int:
    """Bytes, an estimate: torch itself, blocks in flight, or one whole tensor."""
    inputs = max(len(out.tensors) for out in plan.outputs)
    largest = max(math.prod(out.shape) for out in plan.outputs)
    if not plan.method.blockwise:
        return (600 << 20) + 4 * largest * (2 * inputs + 3)
    return (600 << 20) + threads(plan.method, device) * ((2 * inputs + 6) * BLOCK * 4)


def summary(record: dict[str, Any] | AdapterRecord) -> list[tuple[str, str]]:
    """The lines shown after a merge: (label, text)."""
    if isinstance(record, AdapterRecord):
        return _adapter_summary(record)
    context = ContextSpec.from_json(record["context"]["output"])
    totals, donor = record["totals"], record["donor"]
    lines = [
        ("method", f"{record['method']}, {len(record['inputs'])} models"),
        ("engine", _engine(record)),
        ("context", f"{context.describe()} ({record['context']['policy']})"),
        ("config", f"of {donor['config']} ({donor['why']})"),
        ("tokenizer", f"from {donor['tokenizer']}"),
        ("tensors", str(totals["tensors"])),
    ]
    if "lost_to_storage" in totals:
        lost = f"{totals['lost_to_storage']:.2%} of the merged change, by rounding once"
        lines.append(("lost to storage", lost))
    changes: dict[str, dict[str, float]] = totals.get("changes", {})
    short = card.labels(list(changes))
    for name, change in changes.items():
        size, retained = f"{change['relative']:.2%} of the weights", f"{change['retained']:.0%}"
        if donor["why"] == "base_model":
            line = (f"change of {short[name]}", f"{size}, {retained} in the result")
        else:
            text = f"{size} away from the first model, the result is {retained} of the way there"
            line = (short[name], text)
        lines.append(line)
    for pair in totals.get("pairs", ()):
        text = (
            f"cosine {pair['cosine']:.3f}, {pair['sign_conflict']:.1%} of shared entries move in "
            "opposite directions"
        )
        lines.append((card.pair_label(tuple(pair["models"]), short), text))
    return lines


def _engine(record: dict[str, Any]) -> str:
    why = record["engine_why"]
    return f"mergekit, since {why}" if why else "native, float32, one rounding"


def _adapter_summary(record: AdapterRecord) -> list[tuple[str, str]]:
    assert record.totals is not None
    assert record.merge is not None
    before = ContextSpec.from_record(record.context.base)
    after = ContextSpec.from_record(record.context.extended)
    how = "in factors, exactly" if record.merge.exact else "densely, then extracted again"
    totals = record.totals
    return [
        ("method", f"{record.merge.method}, {len(record.merge.inputs)} adapters, {how}"),
        ("context", f"{before.describe()}  ->  {after.describe()}"),
        ("modules", f"{totals.modules} of rank up to {totals.rank_max}"),
        ("error", f"{totals.error:.2e} of the merged change, rounding of the factors included"),
    ]
