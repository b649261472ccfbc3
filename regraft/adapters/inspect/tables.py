"""The result of `regraft inspect` as rich tables that fit 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.adapters.inspect.comparison_tables import (
    adapter_on_checkpoint_tables,
    adapters_tables,
    checkpoints_tables,
)
from regraft.adapters.inspect.comparisons import (
    AdapterComparison,
    CheckpointComparison,
    GraftInspection,
)
from regraft.adapters.inspect.descriptions import AdapterDescription, CheckpointDescription
from regraft.adapters.inspect.formatting import (
    arrow,
    column_table,
    count,
    names_list,
    pairs_table,
    range_text,
    with_revision,
)
from regraft.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from regraft.adapters.inspect.inspect import Inspection


def tables(result: Inspection) -> list[Table | Text]:
    """The tables and notes for a result of `inspect_model`, in print order."""
    match result:
        case CheckpointDescription():
            return _checkpoint(result)
        case AdapterDescription():
            return _adapter(result)
        case CheckpointComparison():
            return checkpoints_tables(result)
        case AdapterComparison():
            return adapters_tables(result)
        case GraftInspection():
            return adapter_on_checkpoint_tables(result)


def _checkpoint(result: CheckpointDescription) -> list[Table | Text]:
    title = {"checkpoint": "Checkpoint", "graft": "Graft", "merge": "Merge"}[result.kind]
    dtypes = ", ".join(f"{name} ({count})" for name, count in result.dtypes.items())
    context, limit = result.context, result.tokenizer_max_length
    lines = [
        ("architecture", f"{result.architecture or '?'} ({result.model_type})"),
        ("parameters", f"{result.parameters:,} in {format_bytes(result.bytes)}"),
        ("stored as", f"{dtypes}, {count(result.shards, 'shard')}"),
        (
            "shape",
            f"{result.layers} layers, hidden {result.hidden_size}, {result.heads} heads "
            f"of {result.head_dim}, {result.kv_heads} kv heads",
        ),
        (
            "vocabulary",
            f"{result.vocabulary:,}, head {'tied to the embedding' if result.tied else 'own'}"
            if result.vocabulary
            else "?",
        ),
    ]
    lines.append(("context", result.context_text))
    if context is not None:
        if context.longest_wavelength:
            lines.append(
                ("longest wavelength", f"{context.longest_wavelength:,.0f} tokens per rotation")
            )
        if limit and limit < context.max_position_embeddings:
            lines.append(
                (
                    "tokenizer",
                    f"truncates at {limit:,} tokens (model_max_length), below the context",
                )
            )
    if result.revision:
        lines.append(("revision", result.revision))
    lines.append(("fingerprint", result.fingerprint or "not computed for a Hub model"))
    roles = column_table("Tensors", ["role", "tensors", "parameters"])
    for role, row in result.roles.items():
        roles.add_row(role, f"{row.tensors:,}", f"{row.parameters:,}")
    blocks: list[Table | Text] = [pairs_table(f"{title} {result.name}", lines), roles]
    if result.made is not None:
        blocks.insert(1, pairs_table("\nMade from", result.made.lines))
    if result.unknown_tensors:
        blocks.append(
            names_list("Tensors that the architecture does not have", result.unknown_tensors)
        )
    return blocks


def _adapter(result: AdapterDescription) -> list[Table | Text]:
    alpha = f"alpha {result.lora_alpha:g}" if result.lora_alpha is not None else "alpha 8"
    scaling = range_text(result.scaling_min or 0, result.scaling_max or 0, "{:.4g}")
    lines = [("base", with_revision(result.base, result.base_revision))]
    if result.method:
        lines.append(("merged", f"by {result.method} from {', '.join(result.merged_from)}"))
    elif result.extended:
        lines.append(("extracted from", result.extended))
    lines += [
        (
            "rank",
            f"{range_text(result.rank_min, result.rank_max, '{}')}, {alpha}, "
            f"scaling {scaling}"
            f"{' (rsLoRA)' if result.rslora else ''}",
        ),
        (
            "size",
            f"{format_bytes(result.bytes)}, {result.parameters:,} parameters, "
            f"{', '.join(result.dtypes)}" + (f", layout {result.layout}" if result.layout else ""),
        ),
        ("norm of the change", f"{result.change_norm:.4g}"),
    ]
    if result.context:
        contexts = result.context
        lines.append(("context", arrow(contexts.base.text, contexts.extended.text)))
    else:
        lines.append(("context", "not stored: give --context when you apply the adapter"))
    totals = result.totals
    if totals is not None:
        figure, kind = f"{totals.error:.4f}", "projections'"
        if result.method:  # the error of an exact merge is far below 0.0001
            figure, kind = f"{totals.error:.3g}", "merged"
        lines.append(("error", f"{figure} of the {kind} change"))
    if totals is not None and totals.signal_captured is not None:
        share = f"{totals.signal_captured:.1%} of it in the adapter"
        lines.append(("above rounding", f"{totals.signal:.1%} of the change's energy; {share}"))
    lines += [
        ("not captured", f"{role}: {fact.changed} tensors, "
         f"{fact.share_of_all_change:.2%} of all change")
        for role, fact in (result.not_captured or {}).items() if fact.changed
    ]  # fmt: skip
    if result.differences:
        lines.append(("beside the factors", count(len(result.differences), "dense difference")))
    if result.replaced:
        lines.append(("replaced whole", ", ".join(result.replaced)))
    lines += [(f"loads in {reader}", how) for reader, how in result.readers.items()]
    leaves = column_table(
        "Modules", ["module", "count", "rank", "effective rank", "parameters", "norm of change"]
    )
    for leaf, row in result.leaves.items():
        leaves.add_row(
            leaf, str(row.modules), range_text(row.rank_min, row.rank_max, "{}"),
            range_text(row.effective_rank_min, row.effective_rank_max, "{:.1f}"),
            f"{row.parameters:,}", f"{row.change_norm:.4g}",
        )  # fmt: skip
    return [pairs_table(f"Adapter {result.name}", lines), leaves]
