"""`apply_lora`: a checkpoint with an adapter merged into it, W + s B A, and its context length.

Everything is checked first (`check`), then tensors are streamed one by one (`stream`). Tokenizer,
chat template, generation config and rows of added tokens stay the checkpoint's own.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from regraft import progress
from regraft.adapters.apply import card
from regraft.adapters.apply.check import Verdict, check_graft
from regraft.adapters.apply.guard import match_guard
from regraft.adapters.apply.match import Change
from regraft.adapters.apply.stream import OutputTensor, TensorSums, output_tensors, write_tensors
from regraft.adapters.folder import CONFIG, RECORD, digests
from regraft.adapters.reader import Adapter
from regraft.checkpoint.dtypes import OUTPUT_DTYPES
from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.shard_plan import plan_shards
from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.device import full_precision, pick_device
from regraft.errors import InputError
from regraft.job import Job
from regraft.records import (
    AdapterFiles,
    GraftContext,
    GraftRecord,
    GraftShare,
    ModelRecord,
    Plain,
    TensorGraft,
    dump_json,
    to_json,
    versions,
)
from regraft.rope import ContextSpec
from regraft.units import format_tokens, parse_bytes

BYTES_PER_SECOND = 0.5e9  # read, on two cores


@full_precision()
def apply_lora(
    adapter: str | Path,
    checkpoint: str | Path,
    out: str | Path | None,
    *,
    scale: float = 1.0,
    context: str | None = None,
    guard: str | Path | None = None,
    dtype: str | None = None,
    max_shard_size: str | int | None = None,
    verify: bool = False,
    device: str = "auto",
    force: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> GraftRecord:
    """Write `checkpoint` with `adapter` merged into it to the folder `out`.

    scale: factor of the adapter's change. context: 'adapter' (RoPE and length of the adapter's
    extended model), 'checkpoint' (the checkpoint's own) or 'theta=..,length=..'; None takes the
    adapter's if the checkpoint has the context of the adapter's base. guard: a model that
    the checkpoint was fine-tuned from; weights that moved much from it get less of the change (see
    `guard`). dtype: 'bfloat16', 'float16' or 'float32' for all floating-point tensors; None keeps
    the dtypes. max_shard_size: such as '5GB'; None keeps the shards. verify: read everything back
    from disk. force: accept an unrelated checkpoint or guard. dry_run: only check; the record has a
    `plan`, and `out` may be None.

    Returns the record in regraft.json. Raises LineageError (an unrelated checkpoint, one that
    already has the change, unequal RoPE without a policy), CheckpointError (broken files, NaN,
    another architecture), InputError, OutputError.
    """
    if not math.isfinite(scale):
        raise InputError(f"--scale {scale} is not a number that can scale a change.")
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise InputError(f"--dtype '{dtype}' is not one of {', '.join(OUTPUT_DTYPES)}.")
    if guard == "":
        raise InputError("--guard is empty; name the model that the checkpoint was tuned from.")
    out_dtype = OUTPUT_DTYPES[dtype] if dtype is not None else None
    shard_bytes = None
    if max_shard_size is not None:
        shard_bytes = parse_bytes(max_shard_size, "--max-shard-size")
    torch_device = pick_device(device)
    job = None
    if out is not None:
        inputs = [adapter, checkpoint, *([guard] if guard is not None else [])]
        job = Job(out, inputs=inputs, overwrite=overwrite, resume=resume)
    elif not dry_run:
        raise InputError("apply needs an output folder: regraft apply ADAPTER CHECKPOINT -o OUT")
    lora = Adapter.open(adapter)
    guard_model = Checkpoint.open(guard) if guard is not None else nullcontext()
    with Checkpoint.open(checkpoint) as target, guard_model as origin:
        verdict = check_graft(lora, target, scale=scale, context=context)
        verdict.raise_refusals(force=force)
        assert verdict.context is not None
        assert verdict.policy is not None
        guarding = None
        if origin is not None:
            guarding = match_guard(lora, target, verdict.match, origin, force=force)
        for text in [*verdict.warnings, *(guarding.warnings if guarding else [])]:
            progress.warn(text)
        record = GraftRecord(
            adapter=AdapterFiles(name=lora.name, sha256=digests(lora.folder)),
            base=verdict.base,
            checkpoint=ModelRecord(
                name=target.name, revision=target.revision, fingerprint=target.fingerprint()
            ),
            context=GraftContext(
                checkpoint=checkpoint_context(target).to_record(),
                output=verdict.context.to_record(),
                policy=verdict.policy,
            ),
            lineage=verdict.relation,
            already_present=verdict.already_present,
            arguments={
                "scale": scale,
                "context": context,
                "max_shard_size": shard_bytes,
                "dtype": dtype,
            },
            versions=versions(),
            guard=guarding.to_record() if guarding else None,
            untied_head=verdict.match.untied_head,
        )
        config = _config(target, verdict, dtype)
        outputs = output_tensors(target, verdict.match, out_dtype)
        shards = plan_shards(
            [output.planned for output in outputs], like=target, max_shard_bytes=shard_bytes
        )
        if dry_run:
            return replace(record, plan=_plan(outputs))
        assert job is not None
        with job.start(to_json(record)) as staging:
            writer = CheckpointWriter(staging, shards, metadata=target.metadata, verify=verify)
            sums = write_tensors(
                lora, target, outputs, scale, writer, staging, torch_device, guarding
            )
            writer.add_file("config.json", config)
            for name in target.other_files():
                path = target.file(name)
                # PEFT's config beside a whole model would be loaded again
                if path is not None and name != CONFIG:
                    writer.add_file(name, path)
            record = _with_results(record, sums, verdict.match.changes, lora)
            writer.add_file(RECORD, dump_json(record))
            with progress.stage("Writing the card"):
                card.write_graft_card(staging.folder, record, summary(record))
            writer.finish()
            staging.publish()
    return record


def _config(target: Checkpoint, verdict: Verdict, dtype: str | None) -> bytes:
    """config.json of the output: the context, the dtype, and whether the head is tied."""
    assert verdict.context is not None
    config = verdict.context.write_into(target.config)
    if dtype is not None:
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[key] = dtype
    if verdict.match.untied_head is not None:
        config["tie_word_embeddings"] = False
        if isinstance(text := config.get("text_config"), dict) and "tie_word_embeddings" in text:
            text["tie_word_embeddings"] = False
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _with_results(
    record: GraftRecord, sums: dict[str, TensorSums], changes: dict[str, Change], lora: Adapter
) -> GraftRecord:
    def share(names: list[str]) -> GraftShare:
        squared = sum(sums[name].change for name in names)
        lost = sum(sums[name].loss for name in names)
        along = sum(sums[name].along for name in names)
        scales = sum(sums[name].guard_scales for name in names)
        guarded = sum(sums[name].guarded for name in names)
        return GraftShare(
            tensors=len(names),
            change_norm=math.sqrt(squared),
            lost_to_storage=math.sqrt(lost / squared) if squared else 0.0,
            retained=along / squared if squared else 1.0,
            guard_scale=scales / guarded if guarded else None,
        )

    by_role: dict[str, list[str]] = {}
    for name, change in changes.items():
        by_role.setdefault(change.role, []).append(name)
    return replace(
        record,
        totals=share(list(sums)),
        roles={role: share(names) for role, names in by_role.items()},
        tensors={
            name: TensorGraft(
                kind=changes[name].kind, rows=changes[name].rows, **asdict(share([name]))
            )
            for name in sums
        },
        ignored=lora.ignored,
    )


def _plan(outputs: list[OutputTensor]) -> dict[str, Plain]:
    read = sum(output.source.nbytes for output in outputs)
    return {
        "tensors": len(outputs),
        "changed": sum(output.change is not None for output in outputs),
        "read_bytes": read,
        "write_bytes": sum(output.planned.nbytes for output in outputs),
        "peak_memory_bytes": 800 << 20,
        "seconds": round(read / BYTES_PER_SECOND, 1),
    }


def _storage(totals: GraftShare) -> list[tuple[str, str]]:
    """(label, text) on the change that rounding to the stored dtype leaves."""
    if totals.lost_to_storage < 0.001:
        return [("storage", f"rounding takes {totals.lost_to_storage:.2%} of the change")]
    lines = [
        (
            "storage",
            f"{totals.retained:.1%} of the change reaches the file along its own direction; "
            f"rounding adds an error of {totals.lost_to_storage:.1%} of its norm, spread over all "
            "directions as in any model of this dtype",
        )
    ]
    if totals.retained < 0.9:
        lines.append(("advice", "the change is small beside the dtype's steps: --dtype float32"))
    return lines


def summary(record: GraftRecord) -> list[tuple[str, str]]:
    """(label, text) of the summary that is printed after applying an adapter."""
    before = ContextSpec.from_record(record.context.checkpoint)
    after = ContextSpec.from_record(record.context.output)
    arrow = f"{before.describe()}  ->  {after.describe()}" if before != after else after.describe()
    policy = record.context.policy
    origin = "as given" if policy == "given" else f"from the {policy}"
    lines = [("context", f"{arrow} ({origin})")]
    if record.totals is not None:
        lines.append(
            ("changed", f"{record.totals.tensors} tensors, scale {record.arguments['scale']}")
        )
        if record.guard is not None and record.totals.guard_scale is not None:
            lines.append(
                (
                    "guard",
                    f"{record.guard.model.name}: a weight gets {record.totals.guard_scale:.1%} of "
                    "its change on average",
                )
            )
        lines += _storage(record.totals)
    if record.untied_head is not None:
        lines.append(("head", f"no longer tied to the embedding: stored as {record.untied_head}"))
    if record.lineage:
        distances = ", ".join(
            f"{role} {d.distance:.1%}" for role, d in record.lineage.roles.items()
        )
        lines.append(("distance from the adapter's base", distances))
    if after.max_position_embeddings > before.max_position_embeddings:
        length = format_tokens(after.max_position_embeddings)
        lines.append(("serve it", f"the config says {length}; vLLM and transformers read it"))
    return lines
