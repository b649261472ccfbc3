"""A merge in lines for the screen and the card: its plan (`--dry-run`), and its result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from regraft.markdown import last_name
from regraft.merge.inputs.inputs import Inputs
from regraft.merge.methods.blockwise.blocks import BLOCK
from regraft.merge.native.adapter_plan import AdapterPlan
from regraft.merge.native.plan import Output, Plan
from regraft.merge.native.stream import threads
from regraft.merge.report.conflicts import role
from regraft.records import AdapterRecord, MergeFigures, MergeRecord, Plain
from regraft.rope import ContextSpec
from regraft.units import counted, format_bytes

_DENSE = "densely, then extracted again"
_BYTES_PER_SECOND = 0.5e9  # read on two cores, measured with benchmarks/merge.py


def plan_lines(
    record: MergeRecord, inputs: Inputs, plan: Plan | None, device: torch.device
) -> dict[str, Plain]:
    """The plan of a merge: label -> text or number. plan: None for a merge in mergekit."""
    donor = record.donor
    lines: dict[str, Plain] = {f"input {i}": str(one) for i, one in enumerate(inputs, 1)}
    lines |= {
        "method": record.method,
        "engine": _engine(record),
        "context": _context(record),
        "config": f"of {donor.config} ({donor.why})",
        "tokenizer": f"from {donor.tokenizer}",
    }
    if plan is None:
        return lines
    by_role: dict[str, list[Output]] = {}
    for output in plan.outputs:
        by_role.setdefault(role(output), []).append(output)
    common = _parameters(plan.outputs)
    alike = all(_parameters(outputs) == common for outputs in by_role.values())
    if alike and common:
        lines["parameters"] = common
    for name, outputs in by_role.items():
        shapes = " or ".join(str(list(shape)) for shape in sorted({o.shape for o in outputs})[:2])
        own = "" if alike else _parameters(outputs)
        lines[name] = f"{len(outputs)} x {shapes}{', ' if own else ''}{own}"
    return lines | {
        "reads": format_bytes(plan.read_bytes),
        "writes": format_bytes(plan.write_bytes),
        "peak memory": f"about {format_bytes(peak_memory(plan, device))}",
        "seconds": round(plan.read_bytes / _BYTES_PER_SECOND, 1),
    }


def adapter_plan_lines(
    record: MergeRecord, inputs: Inputs, plan: Plan, space: str, size: AdapterPlan
) -> dict[str, Plain]:
    """The plan of a merge into an adapter: label -> text or number. space: of the recipe; size: the
    plan of the adapter."""
    how = _how(record.method, space)
    adapters = {one.adapter.folder: one.adapter for one in inputs if one.adapter is not None}
    read = sum(adapter.nbytes for adapter in adapters.values())
    if size.dense:
        bases = [out.base for out in plan.changed if out.base is not None]
        read += sum(one.info(name).nbytes for one, name in bases)
    lines: dict[str, Plain] = {f"input {i}": str(one) for i, one in enumerate(inputs, 1)}
    return lines | {
        "method": f"{record.method}, {counted(len(adapters), 'adapter')}, {how}",
        "context": _context(record),
        "parameters": _parameters(plan.changed),
        "modules": f"{len(plan.changed)} of rank up to {size.rank}",
        "reads": format_bytes(read),
        "writes": f"up to {format_bytes(size.weight_bytes)}",
        "peak memory": f"about {format_bytes(size.peak_bytes)}",
        "seconds": round(size.seconds + read / _BYTES_PER_SECOND, 1),
    }


def _parameters(outputs: Sequence[Output]) -> str:
    """The parameters of some tensors, as a range where they differ."""
    names = outputs[0].params
    return ", ".join(f"{name} {_range([out.params[name] for out in outputs])}" for name in names)


def _range(values: list[Any]) -> str:
    if isinstance(values[0], list):
        each = [_range(list(column)) for column in zip(*values, strict=False)]
        return each[0] if len(set(each)) == 1 else f"({', '.join(each)})"
    texts = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    if len(set(texts)) == 1:
        return texts[0]
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values):
        return " or ".join(dict.fromkeys(texts))
    return f"{min(numbers):.4g} to {max(numbers):.4g}"


def peak_memory(plan: Plan, device: torch.device) -> int:
    """Estimated peak memory in bytes: torch itself, and the blocks of all threads or one tensor."""
    inputs = max(len(out.tensors) for out in plan.outputs)
    largest = max(math.prod(out.shape) for out in plan.outputs)
    if not plan.method.blockwise:
        return (600 << 20) + 4 * largest * (2 * inputs + 3)
    return (600 << 20) + threads(plan.method, device) * ((2 * inputs + 6) * BLOCK * 4)


def summary(record: MergeRecord | AdapterRecord) -> list[tuple[str, str]]:
    """The lines on the result of a merge: (label, text)."""
    if isinstance(record, AdapterRecord):
        return _adapter_summary(record)
    donor, totals = record.donor, record.totals
    assert totals is not None
    lines = [
        ("method", f"{record.method}, {len(record.inputs)} models"),
        ("engine", _engine(record)),
        ("context", _context(record)),
        ("config", f"of {donor.config} ({donor.why})"),
        ("tokenizer", f"from {donor.tokenizer}"),
        ("tensors", str(totals.tensors)),
    ]
    if totals.figures is not None:
        lines += _figures(totals.figures, based=measured_from_base(record))
    return lines


def measured_from_base(record: MergeRecord) -> bool:
    """Whether every change is measured from base_model, and not from the first model of its slice.
    A method that ignores the base reads it only where a slice lists it."""
    sources = [[tensor.base, *tensor.inputs] for tensor in record.tensors.values()]
    return record.donor.why == "base_model" and all(
        any(one is not None and one.model == record.donor.config for one in tensor)
        for tensor in sources
    )


def _figures(figures: MergeFigures, *, based: bool) -> list[tuple[str, str]]:
    """The lines on the inputs' changes. based: as `measured_from_base` says."""
    lost = f"{figures.lost_to_storage:.2%} of the merged change, by rounding once"
    lines = [("lost to storage", lost)]
    short = labels(list(figures.changes))
    for name, change in figures.changes.items():
        size, retained = f"{change.relative:.2%} of the weights", f"{change.retained:.0%}"
        if based:
            lines.append((f"change of {short[name]}", f"{size}, {retained} in the result"))
        else:
            text = f"{size} away from the first model, the result is {retained} of the way there"
            lines.append((short[name], text))
    for pair in figures.pairs:
        text = (
            f"cosine {pair.cosine:.3f}, {pair.sign_conflict:.1%} of shared entries move in "
            "opposite directions"
        )
        lines.append((pair_label(pair.models, short), text))
    return lines


def labels(names: list[str]) -> dict[str, str]:
    """A short name for each model reference, different for each."""
    short = {name: "+".join(last_name(part) for part in name.split("+")) for name in names}
    twice = {label for label in short.values() if list(short.values()).count(label) > 1}
    return {name: name if label in twice else label for name, label in short.items()}


def pair_label(names: tuple[str, str], label: Mapping[str, str]) -> str:
    """The label of a pair of models, from the labels of each."""
    return f"{label[names[0]]} and {label[names[1]]}"


def _engine(record: MergeRecord) -> str:
    why = record.engine_why
    return f"mergekit, since {why}" if why else "native, float32, one rounding"


def _context(record: MergeRecord) -> str:
    return f"{ContextSpec.from_record(record.context.output).describe()} ({record.context.policy})"


def _adapter_summary(record: AdapterRecord) -> list[tuple[str, str]]:
    assert record.totals is not None
    assert record.merge is not None
    before = ContextSpec.from_record(record.context.base)
    after = ContextSpec.from_record(record.context.extended)
    how = _how(record.merge.method, record.merge.space)
    totals = record.totals
    return [
        ("method", f"{record.merge.method}, {counted(len(record.merge.inputs), 'adapter')}, {how}"),
        ("context", f"{before.describe()}  ->  {after.describe()}"),
        ("modules", f"{totals.modules} of rank up to {totals.rank_max}"),
        ("error", f"{totals.error:.3g} of the merged change, rounding of the factors included"),
    ]


def _how(method: str, space: str) -> str:
    """How adapters are merged into an adapter."""
    if space == "core":
        return "in the core space of their factors"
    return "in factors, exactly" if method == "task_arithmetic" else _DENSE
