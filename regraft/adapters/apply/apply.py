"""(adapter, checkpoint) -> checkpoint: W + s B A in float32, rounded once, the context with it.

The target is streamed: tensors the adapter does not touch are copied as bytes, the others are
worked on in row blocks, so memory depends on neither the model nor its largest tensor. Tokenizer,
chat template, generation config and added-token rows stay the target's. What rounding to the stored
dtype loses of the change is measured while it happens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft import progress
from regraft.adapters.apply import card
from regraft.adapters.apply.match import (
    Change,
    check_absent,
    check_kinship,
    choose_context,
    match_changes,
    target_roles,
)
from regraft.adapters.extract.select import context_of
from regraft.adapters.folder import CONFIG, RECORD, digests
from regraft.adapters.reader import Adapter
from regraft.checkpoint.header import TensorInfo
from regraft.checkpoint.layout import Planned, plan_shards
from regraft.checkpoint.sink import CheckpointWriter
from regraft.checkpoint.source import Checkpoint
from regraft.checkpoint.staging import Staging
from regraft.device import each, full_precision, pick_device
from regraft.errors import CheckpointError, InputError
from regraft.job import Job
from regraft.record import (
    AdapterFiles,
    GraftContext,
    GraftRecord,
    GraftShare,
    ModelRecord,
    TensorGraft,
    dump_json,
    to_json,
    versions,
)
from regraft.rope import ContextSpec
from regraft.units import format_tokens, parse_bytes

_BLOCK = 1 << 20  # elements worked on at once by a thread: 4 MB in float32


@full_precision()
def apply(
    adapter: str | Path,
    checkpoint: str | Path,
    out: str | Path | None,
    *,
    scale: float = 1.0,
    context: str | None = None,
    max_shard_size: str | int | None = None,
    verify: bool = False,
    device: str = "auto",
    force: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> GraftRecord:
    """Write `checkpoint` with `adapter` grafted on to the folder `out`; its record.

    context: 'adapter' (RoPE and length of the adapter's extended model), 'checkpoint' (the
    target's own), 'theta=..,length=..'; None takes the adapter's if the target has the context of
    the adapter's base. force: graft on a stranger. verify: read everything back from disk. dry_run:
    check everything and return the record with its plan; `out` may be None then.

    Raises LineageError (a stranger, a target that already has the change, unequal RoPE without a
    policy), CheckpointError (broken files, NaN, another architecture), InputError, OutputError.
    """
    if not math.isfinite(scale):
        raise InputError(f"--scale {scale} is not a number that can scale a change.")
    where = pick_device(device)
    job = None
    if out is not None:
        job = Job(out, inputs=[adapter, checkpoint], overwrite=overwrite, resume=resume)
    elif not dry_run:
        raise InputError("apply needs an output folder: regraft apply ADAPTER CHECKPOINT -o OUT")
    lora = Adapter.open(adapter)
    shard_bytes = parse_bytes(max_shard_size) if max_shard_size is not None else None
    with Checkpoint.open(checkpoint) as target:
        role_of = target_roles(lora, target)
        changes = match_changes(lora, target, role_of, scale)
        spec, policy = choose_context(lora, target, context)
        config = _config(target, spec)
        relation, base = check_kinship(lora, target, role_of, force)
        present = check_absent(lora, target, role_of, changes, scale, force)
        record = GraftRecord(
            adapter=AdapterFiles(name=lora.name, sha256=digests(lora.folder)),
            base=base,
            checkpoint=ModelRecord(
                name=target.name, revision=target.revision, fingerprint=target.fingerprint()
            ),
            context=GraftContext(
                checkpoint=context_of(target).to_record(), output=spec.to_record(), policy=policy
            ),
            lineage=relation,
            already_present=present,
            arguments={"scale": scale, "context": context, "max_shard_size": shard_bytes},
            versions=versions(),
        )
        planned = [Planned(n, info.shape, info.dtype) for n, info in target.tensors.items()]
        shards = plan_shards(planned, like=target, max_shard_bytes=shard_bytes)
        if dry_run:
            return replace(record, plan=_plan(target, changes))
        assert job is not None
        with job.start(to_json(record)) as staging:
            writer = CheckpointWriter(staging, shards, metadata=target.metadata, verify=verify)
            results = _stream(lora, target, changes, scale, writer, staging, where)
            writer.add_file("config.json", config)
            for name in target.other_files():
                path = target.file(name)
                # PEFT's config beside a whole model would be loaded again
                if path is not None and name != CONFIG:
                    writer.add_file(name, path)
            record = _with_results(record, results, changes, lora)
            writer.add_file(RECORD, dump_json(record))
            with progress.stage("Writing the card"):
                card.write_graft_card(staging.folder, record, summary(record))
            writer.finish()
            staging.publish()
    return record


# The work.


def _stream(
    lora: Adapter,
    target: Checkpoint,
    changes: dict[str, Change],
    scale: float,
    writer: CheckpointWriter,
    staging: Staging,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Write every tensor; tensor -> {'squared_change', 'squared_loss'} of the changed ones."""
    results: dict[str, dict[str, float]] = {}
    with progress.bar("Grafting", target.total_bytes, unit="bytes") as bar:

        def make(info: TensorInfo) -> None:
            name = info.name
            change = changes.get(name)
            noted = staging.done(f"graft:{name}")
            if change is None:
                if not writer.finished(name):
                    if not target.is_finite(name):
                        raise CheckpointError(
                            f"Tensor '{name}' of {target.name} holds NaN or infinite numbers; "
                            "give a sound checkpoint."
                        )
                    writer.copy(name, target)
            elif noted is not None and writer.finished(name):
                results[name] = noted
            else:
                tally = _Tally()
                writer.write(name, _changed(lora, target, change, scale, device, tally))
                results[name] = tally.checked(target, change)
                staging.record(f"graft:{name}", **results[name])
            bar.advance(info.nbytes)

        threads = torch.get_num_threads() if device.type == "cpu" else 1
        each(target.tensors.values(), make, threads, size=lambda info: info.nbytes)
    return {name: results[name] for name in target.tensors if name in results}


class _Tally:
    """Squared norms of one tensor's change and of what rounding it lost."""

    def __init__(self) -> None:
        self.change = self.loss = 0.0

    def checked(self, target: Checkpoint, change: Change) -> dict[str, float]:
        if not (math.isfinite(self.change) and math.isfinite(self.loss)):
            info = target.tensors[change.tensor]
            raise CheckpointError(
                f"Tensor '{change.tensor}' of {target.name} holds NaN or infinite numbers, or the "
                f"changed one does not fit {info.dtype}; give a sound checkpoint or a smaller "
                "--scale."
            )
        return {"squared_change": self.change, "squared_loss": self.loss}


def _changed(
    lora: Adapter,
    target: Checkpoint,
    change: Change,
    scale: float,
    device: torch.device,
    tally: _Tally,
) -> Iterator[Tensor]:
    """The new tensor in row blocks of the stored dtype, tallied as it is made."""
    info = target.tensors[change.tensor]
    if change.kind == "factors":
        b, a = (part.to(device) for part in lora.factors(change.key))
        b = b * scale
        gram = (b.T @ b).double() * (a @ a.T).double()
        tally.change = max(float(gram.sum()), 0.0)
    elif change.kind == "difference":
        dense = lora.difference(change.key)
    else:
        dense = lora.replacement(change.key)
    step = max(1, _BLOCK // max(1, math.prod(info.shape[1:])))
    exact = torch.float64 if info.dtype == torch.float64 else torch.float32
    length = info.shape[0] if info.shape else 1
    for i in range(0, length, step):
        if info.shape:
            block = target.rows(info.name, i, min(i + step, length))
        else:
            block = target.tensor(info.name).reshape(1)
        rows = max(0, min(change.rows - i, block.shape[0]))
        if rows == 0:
            yield block if info.shape else block.reshape(())
            continue
        old = block[:rows].to(device=device, dtype=exact)
        if change.kind == "factors":
            new = torch.addmm(old, b[i : i + rows].to(exact), a.to(exact))
        else:
            part = dense[i : i + rows].to(device=device, dtype=exact)
            new = part if change.kind == "replacement" else old.add(part, alpha=scale)
            tally.change += float(torch.linalg.vector_norm(new - old)) ** 2
        stored = new.to(info.dtype)
        if stored is new:  # nothing is rounded, but NaN and infinity must not pass
            tally.loss += 0.0 * float(torch.linalg.vector_norm(new))
        else:  # `old` is a copy then, and a place for the rounded numbers
            tally.loss += float(torch.linalg.vector_norm(new.sub_(old.copy_(stored)))) ** 2
        stored = stored.cpu()
        if rows < block.shape[0]:
            stored = torch.cat([stored, block[rows:]])
        yield stored if info.shape else stored.reshape(())


# What is said about it.


def _config(target: Checkpoint, spec: ContextSpec) -> bytes:
    written = spec.write_into(target.config)
    return (json.dumps(written, indent=2, ensure_ascii=False) + "\n").encode()


def _with_results(
    record: GraftRecord,
    results: dict[str, dict[str, float]],
    changes: dict[str, Change],
    lora: Adapter,
) -> GraftRecord:
    def share(names: list[str]) -> GraftShare:
        squared = sum(results[n]["squared_change"] for n in names)
        lost = sum(results[n]["squared_loss"] for n in names)
        return GraftShare(
            tensors=len(names),
            change_norm=math.sqrt(squared),
            lost_to_storage=math.sqrt(lost / squared) if squared else 0.0,
        )

    by_role: dict[str, list[str]] = {}
    for name, change in changes.items():
        by_role.setdefault(change.role, []).append(name)
    return replace(
        record,
        totals=share(list(results)),
        roles={role: share(names) for role, names in by_role.items()},
        tensors={
            name: TensorGraft(
                kind=changes[name].kind, rows=changes[name].rows, **asdict(share([name]))
            )
            for name in results
        },
        ignored=lora.ignored,
    )


def _plan(target: Checkpoint, changes: dict[str, Change]) -> dict[str, Any]:
    return {
        "tensors": len(target.tensors),
        "changed": len(changes),
        "read_bytes": target.total_bytes,
        "write_bytes": target.total_bytes,
        "peak_memory_bytes": 800 << 20,
        "seconds_on_two_cores": round(target.total_bytes / 0.5e9, 1),
    }


def summary(record: GraftRecord) -> list[tuple[str, str]]:
    """The lines shown after a graft: (label, text)."""
    before = ContextSpec.from_record(record.context.checkpoint)
    after = ContextSpec.from_record(record.context.output)
    arrow = f"{before.describe()}  ->  {after.describe()}" if before != after else after.describe()
    lines = [("context", f"{arrow} (from the {record.context.policy})")]
    if record.totals is not None:
        lines.append(
            ("changed", f"{record.totals.tensors} tensors, scale {record.arguments['scale']}")
        )
        lost = f"{record.totals.lost_to_storage:.2%} of the change, by rounding once"
        lines.append(("lost to storage", lost))
    if record.lineage:
        far = ", ".join(f"{role} {d.distance:.1%}" for role, d in record.lineage.roles.items())
        lines.append(("distance from the adapter's base", far))
    if after.max_position_embeddings > before.max_position_embeddings:
        length = format_tokens(after.max_position_embeddings)
        lines.append(("serve it", f"the config says {length}; vLLM and transformers read it"))
    return lines
