"""`regraft merge`: from a recipe to a checkpoint, or with --as-adapter to an adapter.

    from regraft.merge.job import merge_models
    record = merge_models("recipe.yaml", "merged")

All checks come first and give a plan (`native/plan.py`). Then each tensor is merged in row blocks
(`native/stream.py`) and written through a staging folder, so that memory depends neither on the
size of the models nor on their largest tensor, and `resume` continues a killed run. A recipe that
has no native form runs in mergekit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from regraft import progress
from regraft.adapters.folder import RECORD
from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.checkpoint.write.staging import Staging
from regraft.device import full_precision, pick_device, run_in_threads
from regraft.errors import InputError
from regraft.job import Job
from regraft.merge.files.config import choose_context, find_donor
from regraft.merge.files.files import Files, choose_files, write_files
from regraft.merge.inputs.inputs import Input, Inputs
from regraft.merge.inputs.match import check_relatives, expert_notes, stranger_notes
from regraft.merge.inputs.vocabulary import compare_vocabularies
from regraft.merge.mergekit.engine import (
    check_for_mergekit,
    reason_for_mergekit,
    run_mergekit,
    tokenizer_key,
)
from regraft.merge.methods.registry import get
from regraft.merge.native import into_adapter
from regraft.merge.native.adapter_plan import plan_adapter
from regraft.merge.native.plan import Output, Plan, make_plan
from regraft.merge.native.stream import Tally, merged, threads
from regraft.merge.recipe.recipe import Recipe
from regraft.merge.recipe.schema import schema
from regraft.merge.report import conflicts
from regraft.merge.report.card import write_card
from regraft.merge.report.describe import adapter_plan_lines, plan_lines, summary
from regraft.records import (
    AdapterRecord,
    MergeContext,
    MergeRecord,
    MergeTotals,
    Plain,
    derive_seed,
    dump_json,
    to_json,
    versions,
)
from regraft.rope import ContextSpec
from regraft.units import parse_bytes

__all__ = ["merge_models", "schema", "summary"]

ENGINES = ("auto", "native", "mergekit")


@full_precision()
def merge_models(
    recipe: str | Path | Recipe,
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
) -> MergeRecord | AdapterRecord:
    """Merge by `recipe`, a YAML file or a recipe that is read already, into the folder `out`.
    Returns the record of the merge.

    engine: 'native' (float32 streams), 'mergekit' (a separate process) or 'auto' (native where that
    is possible). as_adapter: write a LoRA adapter on base_model instead of a model. seed: of the
    stochastic methods; each tensor's is derived from it. verify: read back all that is written.
    dry_run: check only, and return a record with a `plan`.

    Raises InputError (a mistake in the recipe, by line; models that do not fit together),
    CheckpointError (damaged models, NaN), LineageError (an adapter of another base), OutputError
    (disk).
    """
    if engine not in ENGINES:
        raise InputError(f"--engine '{engine}' is not one of {', '.join(ENGINES)}.")
    if as_adapter and (max_shard_size is not None or verify):
        option = "--verify" if max_shard_size is None else "--max-shard-size"
        raise InputError(f"{option} is for the shards of a model; leave it out with --as-adapter.")
    torch_device = pick_device(device)
    shard_bytes = None
    if max_shard_size is not None:
        shard_bytes = parse_bytes(max_shard_size, "--max-shard-size")
    arguments: dict[str, Plain] = {
        "engine": engine, "seed": seed, "max_shard_size": shard_bytes, "as_adapter": as_adapter,
    }  # fmt: skip
    job = Job(
        out,
        inputs=[recipe.document.name if isinstance(recipe, Recipe) else recipe],
        overwrite=overwrite,
        resume=resume,
    )
    parsed = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    with Inputs(parsed) as inputs:
        job.add_inputs(inputs.paths())
        checked = _check(parsed, inputs, engine, shard_bytes)
        if parsed.body.space == "core" and not as_adapter:
            raise parsed.error(
                ("space",), "core space holds adapters, not models; add --as-adapter, and make a "
                "model of the result with regraft apply.",
            )  # fmt: skip
        if as_adapter:
            if checked.plan is None:
                raise InputError(f"--as-adapter cannot run in mergekit, but {checked.reason}.")
            into_adapter.check(parsed, inputs, checked.plan)
        record = MergeRecord(
            recipe=parsed.document.text,
            method=parsed.body.merge_method,
            engine="mergekit" if checked.plan is None else "native",
            engine_why=checked.reason,
            inputs=[one.record() for one in inputs],
            donor=checked.files.record(checked.donor, checked.why),
            context=MergeContext(output=checked.context.to_record(), policy=checked.policy),
            notes=checked.notes,
            arguments=arguments,
            versions=versions(),
        )
        for text in checked.notes:
            progress.warn(text)
        if dry_run:
            if as_adapter and checked.plan is not None:
                size = plan_adapter(parsed, inputs, checked.plan)
                plan = adapter_plan_lines(record, inputs, checked.plan, parsed.body.space, size)
            else:
                plan = plan_lines(record, inputs, checked.plan, torch_device)
            return replace(record, plan=plan)
        strangers = stranger_notes(inputs, checked.donor)
        for text in strangers:
            progress.warn(text)
        record = replace(record, notes=[*record.notes, *strangers])
        if checked.plan is None:
            progress.note(f"{checked.reason}: merging in mergekit, a separate process")
        donor = record.donor
        if not as_adapter:
            progress.note(
                f"config from {donor.config} ({donor.why}), tokenizer from {donor.tokenizer}"
            )
        with job.start(to_json(record), torch_device.type) as staging:
            if as_adapter:
                assert checked.plan is not None
                adapter = into_adapter.write(
                    parsed, inputs, checked.plan, plan_adapter(parsed, inputs, checked.plan),
                    checked.context, staging,
                    seed=seed, device=torch_device, arguments=arguments,
                )  # fmt: skip
                write_card(staging.folder, adapter, record)
                staging.publish()
                return adapter
            if checked.plan is not None:
                writer = CheckpointWriter(staging, checked.plan.shards, verify=verify)
                write_files(writer, staging.folder, checked.plan.config, checked.files)
                sums = _stream(checked.plan, parsed.body.scale, seed, writer, staging, torch_device)
                report = conflicts.report(checked.plan.outputs, sums)
                record = replace(
                    record, totals=report.totals, roles=report.roles, tensors=report.tensors
                )
            else:
                made = run_mergekit(
                    parsed, inputs, checked.donor, checked.context, checked.files, staging,
                    seed=seed, device=torch_device, max_shard_bytes=shard_bytes, verify=verify,
                )  # fmt: skip
                writer = made.writer
                write_files(writer, staging.folder, made.config, made.files)
                if made.files is not checked.files:
                    aligned = "mergekit, which aligned the vocabularies"
                    record = replace(record, donor=replace(donor, tokenizer=aligned))
                totals = MergeTotals(tensors=len(made.tensors))
                record = replace(record, totals=totals, tensors=made.tensors)
            writer.add_file(RECORD, dump_json(record))
            with progress.stage("Writing the card"):
                write_card(staging.folder, record, record)
            writer.finish()
            staging.publish()
    return record


@dataclass(frozen=True)
class _Checked:
    """The result of the checks. reason: why the merge runs in mergekit, and then plan is None. why:
    how the donor was chosen; policy: how the context was. notes: warnings for the user."""

    reason: str | None
    plan: Plan | None
    donor: Input
    why: str
    context: ContextSpec
    policy: str
    files: Files
    notes: list[str]


def _check(recipe: Recipe, inputs: Inputs, engine: str, shard_bytes: int | None) -> _Checked:
    """Check that the inputs fit together, and choose donor, context and files.

    Raises InputError with the recipe's line.
    """
    reason = reason_for_mergekit(recipe, inputs, engine)
    donor, why = find_donor(recipe, inputs)
    notes = check_relatives(recipe, inputs, donor)
    context, policy = choose_context(recipe, inputs, donor)
    files = choose_files(recipe, inputs, donor)
    if reason is not None:
        check_for_mergekit(recipe, inputs)
        return _Checked(reason, None, donor, why, context, policy, files, notes)
    method = get(recipe.body.merge_method)
    notes += expert_notes(inputs, method)
    vocabulary = None
    vocabularies = compare_vocabularies(inputs)
    if tokenizer_key(recipe) is not None:
        vocabulary = vocabularies.rows
    elif vocabularies.difference is not None:
        notes.append(
            f"the vocabularies differ and are not aligned ({vocabularies.difference}); add "
            "'tokenizer: {source: base}' if that is not meant"
        )
    plan = make_plan(
        recipe, inputs, method, donor, context, vocabulary=vocabulary, max_shard_bytes=shard_bytes
    )
    return _Checked(None, plan, donor, why, context, policy, files, notes)


def _stream(
    plan: Plan,
    scale: float | None,
    seed: int,
    writer: CheckpointWriter,
    staging: Staging,
    device: torch.device,
) -> dict[str, conflicts.TensorSums]:
    """Merge and write every tensor. Returns the sums for the report, by tensor."""
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
        run_in_threads(
            missing, make, threads(plan.method, device), size=lambda output: output.nbytes
        )
    return sums
