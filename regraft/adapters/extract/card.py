"""The model card of an extracted adapter: its figures, its gaps, how to serve it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from regraft.adapters.serving import llamacpp_flags, readers_of_record, vllm_flags
from regraft.drawing import figure, from_zero, legend, logarithmic, styles, whole_numbers
from regraft.markdown import hub_id, last_name, render
from regraft.records import AdapterRecord, ModuleRecord, TruncationRecord
from regraft.rope import ContextSpec
from regraft.units import format_share
from regraft.write import write_text

FIGURE = "extraction.png"

_CARD = """\
---
library_name: peft
{% if hub_id %}
base_model: {{ hub_id | yaml }}
{% endif %}
tags: [regraft, lora, long-context]
---
# {{ title }}

A LoRA that carries what **{{ extended }}** learned beyond **{{ base }}**, extracted by
[regraft](https://pypi.org/project/regraft/) {{ versions.regraft }} (certified truncated SVD of the
weight difference).

| | |
|---|---|
{{ lines | rows }}

The weights are half of it: **the RoPE must change with them.** `regraft apply` does both:

    regraft apply {{ folder }} CHECKPOINT -o OUT

## Error by kind of module

{% if error == "error" %}
Frobenius error of the stored adapter against the true difference, 0 is exact.
{% else %}
Error of the stored adapter against the true difference on the inputs of the calibration text,
relative to the change of the outputs there; 0 is exact.
{% endif %}
"best" is a proven lower bound for any adapter of these ranks.

| module | modules | rank | change / weights | captured above rounding | {{ error }} | best |
|---|---|---|---|---|---|---|
{% for row in rows %}
{{ row.values() | row }}
{% endfor %}

![Singular values and error by layer](extraction.png)

## Not in this adapter
{% if missing %}

| what | tensors changed | share of all change | largest change of a tensor |
|---|---|---|---|
{% for row in missing %}
{{ [row.role, "%d of %d" % (row.changed, row.tensors), row.share, row.largest] | row }}
{% endfor %}
{% else %}

Nothing that changed.
{% endif %}

## Who loads it

| program | |
|---|---|
{{ readers.items() | rows }}

## Serving it without `regraft apply`

The adapter alone does not change a server's RoPE. On the base model:

    {{ vllm | code }}

    {{ llamacpp | code }}
"""


def write_adapter_card(folder: Path, record: AdapterRecord, lines: list[tuple[str, str]]) -> None:
    """Write README.md and the figure of an extracted adapter. lines: (label, text) of the
    summary."""
    assert record.totals is not None
    assert record.extraction is not None
    after = ContextSpec.from_record(record.context.extended)
    rank = record.totals.rank_stored or record.totals.rank_max
    text = render(
        _CARD,
        title=f"{last_name(record.extended.name)} as a LoRA of {last_name(record.base.name)}",
        hub_id=hub_id(record.base.name, record.base.revision),
        base=record.base.name,
        extended=record.extended.name,
        versions=record.versions,
        error="error" if record.totals.weighted_error is None else "error on inputs",
        lines=lines,
        folder="ADAPTER",
        rows=[_row(leaf, members) for leaf, members in _by_leaf(record.modules).items()],
        missing=[
            {
                "role": role,
                "changed": group.changed,
                "tensors": group.tensors,
                "share": f"{group.share_of_all_change:.2%}",
                "largest": format_share(group.largest_relative_delta),
            }
            for role, group in record.extraction.not_captured.items()
            if group.changed
        ],
        readers=readers_of_record(record),
        vllm=vllm_flags(record.base.name, after, rank),
        llamacpp=llamacpp_flags(after),
    )
    write_text(folder / "README.md", text)
    _draw(folder / FIGURE, record.modules)


def _truncation(module: ModuleRecord) -> TruncationRecord:
    assert module.truncation is not None
    return module.truncation


def _error(module: ModuleRecord) -> float:
    """Its relative error in the norm of the extraction."""
    return module.error if module.weighted_error is None else module.weighted_error


def _by_leaf(modules: Mapping[str, ModuleRecord]) -> dict[str, list[ModuleRecord]]:
    groups: dict[str, list[ModuleRecord]] = {}
    for name, module in modules.items():
        groups.setdefault(name.rpartition(".")[2], []).append(module)
    return groups


def _row(leaf: str, members: list[ModuleRecord]) -> dict[str, str | int]:
    """The table row of one leaf name, with means over its modules."""
    ranks = sorted({module.rank for module in members})
    truncations = [_truncation(module) for module in members]
    captured = [t.signal_captured for t in truncations if t.signal_captured is not None]
    error = sum(map(_error, members)) / len(members)
    best = sum(t.least_possible_error for t in truncations) / len(members)
    relative = sum(module.relative_delta or 0.0 for module in members) / len(members)
    return {
        "leaf": leaf,
        "count": len(members),
        "rank": str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
        "relative": f"{relative:.2%}",
        "captured": f"{sum(captured) / len(captured):.1%}" if captured else "n/a",
        "error": f"{error:.4f}",
        "best": f"{best:.4f}",
    }


def _draw(path: Path, modules: Mapping[str, ModuleRecord]) -> None:
    """Draw, left, the singular values of the middle layer by kind of module; right, errors by
    layer."""
    with figure(path, 2) as (left, right):
        for (leaf, members), style in zip(_by_leaf(modules).items(), styles(), strict=False):
            values = _truncation(members[len(members) // 2]).spectrum
            left.plot(range(1, len(values) + 1), values, label=leaf, **{**style, "marker": ""})
            layers = _errors_by_layer(modules, leaf)
            if len(layers) > 1:
                right.plot(*zip(*layers, strict=True), label=leaf, **style)
            else:
                right.plot([leaf], [layers[0][1]], **style)
        truncations = [_truncation(module) for module in modules.values()]
        edges = [t.noise_edge for t in truncations]
        if min(edges) > 0.02 * min(t.spectrum[-1] for t in truncations):
            middle = sorted(edges)[len(edges) // 2]
            left.axhline(middle, color="#999999", linewidth=1)
            left.annotate("rounding noise", (1, middle), fontsize=7, va="bottom", color="#666666")
        left.set(
            xlabel="index", ylabel="singular value", title="Spectrum of the change, middle layer"
        )
        logarithmic(left)
        right.set(xlabel="layer", ylabel="relative error", title="Error of the adapter by layer")
        from_zero(right)
        if right.get_legend_handles_labels()[1]:
            whole_numbers(right)
            legend(right)
        else:
            legend(left)


def _errors_by_layer(modules: Mapping[str, ModuleRecord], leaf: str) -> list[tuple[int, float]]:
    points = []
    for name, module in modules.items():
        parts = name.split(".")
        if parts[-1] == leaf:
            layer = next((int(part) for part in parts if part.isdigit()), 0)
            points.append((layer, _error(module)))
    return sorted(points)
