"""The lines on the result of a training, for the screen, the model card and the page of a graft."""

from __future__ import annotations

from regraft.rope import ContextSpec
from regraft.train.record import SourceLoss, TrainingRecord
from regraft.units import format_tokens


def summary(record: TrainingRecord) -> list[tuple[str, str]]:
    """The lines on the result of a training: (label, text)."""
    stages = [ContextSpec.from_record(item) for item in record.context.stages]
    before, choice = ContextSpec.from_record(record.context.base), record.choice
    lines = [
        ("context", f"{before.describe()}  ->  {stages[-1].describe()}"),
        ("trained", f"{record.steps:,} steps, {record.tokens:,} tokens"),
    ]
    if record.loss:
        lines.append(("loss", f"{record.loss.first:.3f} -> {record.loss.last:.3f}"))
    if record.watch:
        first, last = record.watch.first, record.watch.last
        far = list(last.nll)[-1]
        start = f"{first.nll[far]:.3f} -> " if far in first.nll else ""
        lines.append((f"NLL at {far}", f"{start}{last.nll[far]:.3f} nats"))
        if last.needle:
            start = f"{first.needle.accuracy:.0%} -> " if first.needle else ""
            lines.append(("needles", f"{start}{last.needle.accuracy:.0%} found"))
    lines += [(f"NLL of {name}", text) for name, text in source_losses(record)]
    if record.drift:
        start_drift, end_drift = record.drift[0], record.drift[-1]
        if choice is not None:
            end_drift = [line for line in record.drift if line.step == choice.step][-1]
        lines.append(
            ("drift", f"{start_drift.drift:+.4f} -> {end_drift.drift:+.4f} nats on short text, "
                      f"after {end_drift.step} steps")
        )  # fmt: skip
    if choice is not None:
        lines.append(("exported", f"the weights after step {choice.step}: {choice.reason}"))
        lines.append(
            ("veto", f"NLL at {choice.positions} more than {choice.far:g} nats above the graft's, "
                     f"or {choice.needles:.0%} fewer needles")
        )  # fmt: skip
    lines += [
        (
            "started again",
            f"stage {lost.stage}, after {lost.steps} steps at theta {lost.theta:.15g}: "
            f"{lost.reason}",
        )
        for lost in record.abandoned
    ]
    lines += [("stopped", f"stage {n}: {reason}") for n, reason in record.stopped.items()]
    return lines


def source_losses(record: TrainingRecord) -> list[tuple[str, str]]:
    """(source, its held-out loss before and after, its share and the suggested one)."""
    context = ContextSpec.from_record(record.context.base).max_position_embeddings
    return [(name, _source_loss(source, context)) for name, source in record.sources.items()]


def _source_loss(source: SourceLoss, context: int) -> str:
    """context: tokens that the model had before."""
    spans = [(source.within, f"within {format_tokens(context)}"), (source.beyond, "beyond")]
    losses = [
        f"{pair.before:.3f} -> {pair.after:.3f} {where} ({pair.tokens:,} tokens)"
        for pair, where in spans
        if pair is not None
    ]
    return (
        f"{', '.join(losses)}; {source.share:.1%} of the training, "
        f"{source.suggested_share:.1%} suggested"
    )
