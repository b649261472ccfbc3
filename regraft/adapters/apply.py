"""(adapter, checkpoint) -> checkpoint: W + s B A in float32, rounded once, the context with it.

The target is streamed: tensors the adapter does not touch are copied as bytes, the others are
worked on in row blocks, so memory depends on neither the model nor its largest tensor. Tokenizer,
chat template, generation config and added-token rows stay the target's. What rounding to the stored
dtype loses of the change is measured while it happens.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft import progress
from regraft.adapters import card, evidence, format, lineage
from regraft.adapters.format import Adapter
from regraft.adapters.pairing import context_of, roles_of
from regraft.checkpoint.roles import Role
from regraft.checkpoint.sink import CheckpointWriter, Planned, Staging, plan_shards
from regraft.checkpoint.source import Checkpoint, TensorInfo
from regraft.device import each, pick_device
from regraft.errors import CheckpointError, InputError, LineageError
from regraft.rope import ContextSpec, parse_context
from regraft.units import format_tokens, parse_bytes

_BLOCK = 1 << 20  # elements worked on at once by a thread: 4 MB in float32
_PRESENT = 0.5  # share of the change beyond which a target may have it already
_VERY_CHANGE = 0.15  # distance of the share from 1 at which it is the very change
# Of a target that regraft or PEFT wrote: our own say something else, theirs would be loaded again.
_LEFT_BEHIND = (format.RECORD, card.GRAFT_FIGURE, format.CONFIG)


@dataclass(frozen=True)
class Change:
    """What happens to one tensor of the target: 'factors', 'difference' or 'replacement'."""

    tensor: str
    kind: str
    key: str  # the adapter's name for it
    rows: int  # leading rows of the target that change
    role: str


def apply(
    adapter: str | Path,
    checkpoint: str | Path,
    out: str | Path,
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
) -> dict[str, Any]:
    """Write `checkpoint` with `adapter` grafted on to the folder `out`; its record.

    context: 'adapter' (RoPE and length of the adapter's extended model), 'checkpoint' (the
    target's own), 'theta=..,length=..'; None takes the adapter's if the target has the context of
    the adapter's base. force: graft on a stranger. verify: read everything back from disk.

    Raises LineageError (a stranger, a target that already has the change, unequal RoPE without a
    policy), CheckpointError (broken files, NaN, another architecture), InputError, OutputError.
    """
    if not math.isfinite(scale):
        raise InputError(f"--scale {scale} is not a number that can scale a change.")
    where = pick_device(device)
    lora = Adapter.open(adapter)
    shard_bytes = parse_bytes(max_shard_size) if max_shard_size is not None else None
    with Checkpoint.open(checkpoint) as target:
        role_of = _roles(lora, target)
        changes = _match(lora, target, role_of, scale)
        spec, policy = _context(lora, target, context)
        config = _config(target, spec)
        relation, base = _check_lineage(lora, target, role_of, force)
        present = _check_absent(lora, target, role_of, changes, scale, force)
        record: dict[str, Any] = {
            "schema_version": format.SCHEMA_VERSION,
            "kind": "graft",
            "adapter": {"name": lora.name, "sha256": _digests(lora.folder)},
            "base": base,
            "checkpoint": {
                "name": target.name,
                "revision": target.revision,
                "fingerprint": target.fingerprint(),
            },
            "context": {
                "checkpoint": context_of(target).to_json(),
                "output": spec.to_json(),
                "policy": policy,
            },
            "lineage": relation.to_json() if relation else None,
            "already_present": present,
            "arguments": {"scale": scale, "context": context, "max_shard_size": shard_bytes},
            "versions": evidence.versions(),
        }
        planned = [Planned(n, info.shape, info.dtype) for n, info in target.tensors.items()]
        shards = plan_shards(planned, like=target, max_shard_bytes=shard_bytes)
        if dry_run:
            return {**record, "plan": _plan(target, changes)}
        job = hashlib.sha256(
            json.dumps(record, sort_keys=True, allow_nan=False).encode()
        ).hexdigest()
        with Staging(
            Path(out), job=job, overwrite=overwrite, resume=resume, inputs=[adapter, checkpoint]
        ) as staging:
            writer = CheckpointWriter(staging, shards, metadata=target.metadata, verify=verify)
            results = _stream(lora, target, changes, scale, writer, staging, where)
            writer.add_file("config.json", config)
            for name in target.other_files():
                path = target.file(name)
                if path is not None and name not in _LEFT_BEHIND:
                    writer.add_file(name, path)
            record |= _results(results, changes, lora)
            text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            writer.add_file(format.RECORD, text.encode())
            card.write_graft_card(staging.folder, record, summary(record))
            writer.finish()
            staging.publish()
    return record


# Before any work: does the adapter fit, whose context, is it a relative.


def _roles(lora: Adapter, target: Checkpoint) -> dict[str, Role]:
    """What each tensor of the target is: the adapter knows where the names are its base's, so that
    transformers (two seconds of imports) is only asked about other spellings and architectures."""
    known = lora.roles()
    same = lora.record is not None and target.config.get("model_type") == lora.record["base"].get(
        "model_type"
    )
    if known is not None and same and target.tensors.keys() <= known.keys():
        return {name: known[name] for name in target.tensors}
    return roles_of(target)


def _match(
    lora: Adapter, target: Checkpoint, role_of: dict[str, Role], scale: float
) -> dict[str, Change]:
    """Tensor of the target -> what happens to it. Raises where the adapter does not fit."""
    if lora.replaced and scale != 1.0:
        raise InputError(
            f"{lora.name} replaces whole tensors (modules_to_save), which --scale {scale} cannot "
            "scale; use --scale 1."
        )
    home = _homes(role_of)
    wanted = (
        [("factors", key) for key in lora.modules]
        + [("difference", key) for key in lora.differences]
        + [("replacement", key) for key in lora.replaced]
    )
    changes: dict[str, Change] = {}
    for kind, key in wanted:
        name = key if key in target.tensors else home.get(key)
        if name is None or (target.tied and role_of[name].kind == "head"):
            tied = " (it is tied to the embedding there)" if target.tied and "head" in key else ""
            raise CheckpointError(
                f"{target.name} has no tensor '{key}'{tied}, which {lora.name} changes; give a "
                "checkpoint of the adapter's architecture."
            )
        info = target.tensors[name]
        if kind == "factors":
            if role_of[name].kind in ("projection", "head"):
                lora.ignore_fan_in_fan_out(key)
            shape: tuple[int, ...] = lora.shape(key)
        elif kind == "difference":
            shape = lora.difference_shape(key)
        else:
            shape = lora.replacement_shape(key)
        rows_only = role_of[name].kind in ("embedding", "head") and kind != "replacement"
        fits = shape == info.shape or (
            rows_only and shape[1:] == info.shape[1:] and shape[0] <= info.shape[0]
        )
        if not fits:
            raise CheckpointError(
                f"Tensor '{name}' of {target.name} is {list(info.shape)} and {lora.name} changes "
                f"one of {list(shape)}; give a checkpoint of the adapter's architecture."
            )
        if info.dtype not in format.FLOATS:
            raise CheckpointError(
                f"Tensor '{name}' of {target.name} is stored as {info.dtype}; give a checkpoint "
                "that is not quantised."
            )
        if name in changes:
            raise CheckpointError(f"{lora.name} changes '{name}' twice; make the adapter again.")
        changes[name] = Change(name, kind, key, shape[0] if shape else 1, role_of[name].kind)
    return changes | _tied_heads(target, role_of, changes)


def _homes(role_of: dict[str, Role]) -> dict[str, str]:
    """The model's own name of each weight and bias -> the target's, which may be spelled without
    `model.` or otherwise."""
    kinds = {name: "bias" if role.kind == "bias" else "weight" for name, role in role_of.items()}
    return {f"{role_of[name].module}.{kind}": name for name, kind in kinds.items()}


def _tied_heads(
    target: Checkpoint, role_of: dict[str, Role], changes: dict[str, Change]
) -> dict[str, Change]:
    """The embedding's change for a head that is stored although it is the embedding."""
    if not target.tied:
        return {}
    return {
        head: replace(change, tensor=head, role="head")
        for head in (name for name, role in role_of.items() if role.kind == "head")
        for name, change in changes.items()
        if change.role == "embedding" and target.tensors[name].shape == target.tensors[head].shape
    }


def _context(lora: Adapter, target: Checkpoint, wanted: str | None) -> tuple[ContextSpec, str]:
    """The output's context and where it is from. Raises LineageError if nobody decided."""
    own = context_of(target)
    if wanted == "checkpoint":
        return own, "checkpoint"
    if wanted not in (None, "adapter"):
        return parse_context(str(wanted), own), "given"
    if lora.context is None:
        if wanted == "adapter":
            raise InputError(
                f"{lora.name} carries no context (no {format.RECORD}); give --context theta=..,"
                "length=.. or --context checkpoint."
            )
        progress.warn(
            f"{lora.name} carries no context, so the output keeps {own.describe()}; if it was made "
            "for a longer one, give --context theta=..,length=.."
        )
        return own, "checkpoint"
    before, after = lora.context
    if wanted == "adapter" or own in (before, after):
        return after, "adapter"
    if before == after:
        return own, "checkpoint"
    raise LineageError(
        f"{target.name} has context {own.describe()}, the adapter takes {before.describe()} to "
        f"{after.describe()}; say which to use: --context adapter, --context checkpoint or "
        "--context theta=..,length=.."
    )


def _check_lineage(
    lora: Adapter, target: Checkpoint, role_of: dict[str, Role], force: bool
) -> tuple[lineage.Relation | None, dict[str, Any] | None]:
    """The distance from the adapter's base to the target, and what is known of that base."""
    named = str(lora.config.get("base_model_name_or_path") or "")
    base = dict(lora.record["base"]) if lora.record else {"name": named or None}
    sketches = _sketches(lora, target, role_of)
    if sketches is None:
        progress.warn(
            f"{lora.name} does not say what its base's weights were, so it cannot be checked "
            f"whether {target.name} is a relative."
        )
        return None, base
    relation = lineage.relate(*sketches)
    if relation.verdict == "stranger" and not force:
        raise LineageError(
            f"{target.name} is no relative of {base['name']}, the base of {lora.name}: "
            f"{relation.sentence()}; give a model made from that base, or --force."
        )
    return relation, base


def _sketches(
    lora: Adapter, target: Checkpoint, role_of: dict[str, Role]
) -> tuple[lineage.Sketch, lineage.Sketch, dict[str, Role]] | None:
    """Samples of the adapter's base and of the target, and roles, under the base's names."""
    samples = lora.lineage() or _samples(str(lora.config.get("base_model_name_or_path") or ""))
    if samples is None:
        return None
    home, here = _homes(role_of), lineage.sketch(target)
    own = {name: name if name in here else home.get(name, "") for name in samples}
    known = {name: there for name, there in own.items() if there in here}
    return (
        samples,
        {name: here[there] for name, there in known.items()},
        {name: role_of[there] for name, there in known.items()},
    )


def _samples(base: str) -> dict[str, Tensor] | None:
    """Sampled weights of the base that a plain adapter names, if that is a model at hand."""
    if not base or not Path(base).is_dir():
        return None
    try:
        with Checkpoint.open(base) as original:
            return lineage.sketch(original)
    except CheckpointError as error:
        progress.warn(f"The adapter's base cannot be read: {error}")
        return None


def _check_absent(
    lora: Adapter,
    target: Checkpoint,
    role_of: dict[str, Role],
    changes: dict[str, Change],
    scale: float,
    force: bool,
) -> float | None:
    """How much of the change the target has already, if that can be known.

    A model trained on like text moves along the change too, so the share alone proves nothing: it
    is refused where the target has the adapter's new context as well, or, for an adapter that
    changes no context, where the share is that of the very change. Else it is a warning.
    """
    sketches = _sketches(lora, target, role_of)
    if sketches is None:
        return None
    factors = ((c.key, *lora.factors(c.key)) for c in changes.values() if c.kind == "factors")
    present = lineage.present(sketches[0], sketches[1], factors)
    before, after = lora.context or (None, None)
    certain = (
        abs(present - 1) < _VERY_CHANGE
        if before == after
        else ContextSpec.from_config(target.config) == after
    )
    if present > _PRESENT and scale > 0 and not force:
        found = f"{target.name} already has {present:.0%} of the change that {lora.name} makes"
        if certain:
            raise LineageError(f"{found}; give a checkpoint without it, or --force.")
        progress.warn(f"{found}: it was trained on something alike, or has the change in it.")
    return present


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
                    writer.copy(name, target)
            elif noted is not None and writer.finished(name):
                results[name] = noted
            else:
                tally = _Tally()
                writer.write(name, _changed(lora, target, change, scale, device, tally))
                target.release(name)
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
    weight = target.tensor(change.tensor)
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
    if not info.shape:
        weight, step = weight.reshape(1), 1
    for i in range(0, weight.shape[0], step):
        block = weight[i : i + step]
        rows = max(0, min(change.rows - i, block.shape[0]))
        if rows == 0:
            yield block.clone()
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


def _results(
    results: dict[str, dict[str, float]], changes: dict[str, Change], lora: Adapter
) -> dict[str, Any]:
    def share(names: list[str]) -> dict[str, Any]:
        squared = sum(results[n]["squared_change"] for n in names)
        lost = sum(results[n]["squared_loss"] for n in names)
        return {
            "tensors": len(names),
            "change_norm": math.sqrt(squared),
            "lost_to_storage": math.sqrt(lost / squared) if squared else 0.0,
        }

    by_role: dict[str, list[str]] = {}
    for name, change in changes.items():
        by_role.setdefault(change.role, []).append(name)
    return {
        "totals": share(list(results)),
        "roles": {role: share(names) for role, names in by_role.items()},
        "tensors": {
            name: {"kind": changes[name].kind, "rows": changes[name].rows, **share([name])}
            for name in results
        },
        "ignored": lora.ignored,
    }


def _plan(target: Checkpoint, changes: dict[str, Change]) -> dict[str, Any]:
    return {
        "tensors": len(target.tensors),
        "changed": len(changes),
        "read_bytes": target.total_bytes,
        "write_bytes": target.total_bytes,
        "peak_memory_bytes": 800 << 20,
        "seconds_on_two_cores": round(target.total_bytes / 0.5e9, 1),
    }


def _digests(folder: Path) -> dict[str, str]:
    """The files that decide the change -> SHA-256."""
    names = (format.CONFIG, format.WEIGHTS, format.DIFFERENCES)
    return {name: _digest(folder / name) for name in names if (folder / name).is_file()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def summary(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines a person wants to see after a graft: (label, text)."""
    context, totals = record["context"], record["totals"]
    before = ContextSpec.from_json(context["checkpoint"])
    after = ContextSpec.from_json(context["output"])
    arrow = f"{before.describe()}  ->  {after.describe()}" if before != after else after.describe()
    lines = [("context", f"{arrow} (from the {context['policy']})")]
    lines.append(("changed", f"{totals['tensors']} tensors, scale {record['arguments']['scale']}"))
    lines.append(
        ("lost to storage", f"{totals['lost_to_storage']:.2%} of the change, by rounding once")
    )
    if record["lineage"]:
        relation = record["lineage"]
        far = ", ".join(f"{k} {v['distance']:.1%}" for k, v in relation["roles"].items())
        lines.append(("distance from the adapter's base", far))
    if after.max_position_embeddings > before.max_position_embeddings:
        length = format_tokens(after.max_position_embeddings)
        lines.append(("serve it", f"the config says {length}; vLLM and transformers read it"))
    return lines
