"""The text of `regraft plan` and of a dry run: stages, traces, the longest rows."""

from __future__ import annotations

from regraft.train.estimate.plan import StageEstimate, StageTrace, TrainingPlan
from regraft.units import format_bytes, format_estimate, format_tokens


def lines(plan: TrainingPlan) -> list[tuple[str, str]]:
    """The lines on the screen: (label, text)."""
    model = plan.model
    rows = [
        ("devices", f"{plan.machine.name}, {format_bytes(plan.machine.usable_bytes)} usable each"),
        ("model", f"{_count(model.parameters)} parameters, {_count(model.trained)} trained"),
    ]
    for i, stage in enumerate(plan.stages, 1):
        over = f" over {plan.context_devices}" if plan.context_devices > 1 else ""
        rows.append((f"stage {i}", f"{format_tokens(stage.length)}{over}: {describe(stage)}"))
    for i, trace in enumerate(plan.traces or [], 1):
        rows += _trace_lines(i, trace)
    for name, length in plan.longest.items():
        rows.append((f"longest, {name}", f"{length:,} tokens" if length else "does not fit"))
    rows.append(("", "Memory and time are estimates; time may be wrong by a factor of two."))
    return rows


def _trace_lines(number: int, trace: StageTrace) -> list[tuple[str, str]]:
    apart = trace.formula_bytes / trace.device_bytes - 1
    size = format_bytes(trace.device_bytes)
    rows = [
        (f"stage {number}, traced", f"{size} of live tensors each; formula {apart:+.0%}"),
        ("  of that", _sizes(trace.classes)),
    ]
    if trace.host_bytes:
        rows.append(("  on all hosts", format_bytes(trace.host_bytes)))
    if trace.sent_bytes:
        rows.append(("  sent by each a batch", _sizes(trace.sent_bytes)))
    if not trace.exact:
        rows.append(
            ("", "The peaks are not linear in the number of layers, so this is an estimate.")
        )
    return rows


def _sizes(sizes: dict[str, float]) -> str:
    """Largest first, those of a megabyte or more."""
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in ordered if size >= 1e6)


def describe(stage: StageEstimate) -> str:
    """One stage in a line: whether it fits, memory, time, links."""
    fits = "fits" if stage.fits else "DOES NOT FIT"
    host = f" and {format_bytes(stage.host_bytes)} of host memory" if stage.host_bytes else ""
    link = ""
    if stage.link_bytes_per_second:
        link = f"; {stage.link_bytes_per_second / 1e9:.1f} GB/s between devices"
    return (
        f"{fits}, {format_bytes(stage.device_bytes)} each{host}"
        f"{' with attention kept' if stage.keep_attention else ''}; "
        f"{format_estimate(stage.step_seconds)} a step, "
        f"{format_estimate(stage.seconds)} in all{link}"
    )


def _count(number: int) -> str:
    """Parameters with three digits: 8.03B, 168M, 290k."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
