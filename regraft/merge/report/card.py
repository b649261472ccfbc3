"""The model card of a merge: its inputs, how much of each change remains, and the context."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from regraft.adapters.serving import readers_of_record
from regraft.drawing import figure, legend, styles, whole_numbers
from regraft.markdown import Markdown, last_name, render
from regraft.merge.report.describe import labels, measured_from_base, pair_label, summary
from regraft.records import (
    AdapterRecord,
    ChangeFigures,
    MergeFigures,
    MergeRecord,
    MergeTotals,
    PairFigures,
    TensorMerge,
)
from regraft.write import write_text

FIGURE = "merge.png"

_CARD = """\
---
library_name: {{ library }}
base_model:
{% for name in models %}
  - {{ name | yaml }}
{% endfor %}
tags: [regraft, merge]
---
# {{ title }}

{{ models | length }} models merged with `{{ method }}` by
[regraft](https://pypi.org/project/regraft/) {{ versions.regraft }} ({{ engine }}).

| | |
|---|---|
{{ lines | rows }}

## Recipe

{{ recipe | fenced("yaml") }}
{% if inputs %}

## How much of each change the result retains

A change is a model minus {{ reference }}. "retained" is the part of it that the result has (1 is
all of it); "lost" is the part of the merged change that rounding to the stored dtype took.

| tensors | how many | lost |{% for name in inputs %} {{ name }}: change | retained |{% endfor %}

|---|---|---|{% for name in inputs %}---|---|{% endfor %}

{% for role, row in roles.items() %}
| {{ role }} | {{ row.tensors }} | {{ row.lost }} |{{ row.inputs }}
{% endfor %}
{% if pairs %}

## Conflicts

Entries that two changes move in opposite directions, the cosine between the changes, and how far
their 8 leading directions are the same (estimated from sampled rows).

| tensors |{% for name in pairs %} {{ name }}: opposite | cosine | overlap |{% endfor %}

|---|{% for name in pairs %}---|---|---|{% endfor %}

{% for role, row in roles.items() %}
| {{ role }} |{{ row.pairs }}
{% endfor %}
{% endif %}

![Conflicts by layer](merge.png)
{% endif %}

{% for note in notes %}
{{ note }}

{% endfor %}
{% if adapter %}
The RoPE must change with the weights: `regraft apply` does both.

| program | loads it |
|---|---|
{{ readers.items() | rows }}

{% else %}
The config has the RoPE and the context length in both spellings.
{% endif %}
What a merge is worth is not known from weights: measure it at long and short positions before
relying on it.
"""


def write_card(folder: Path, record: MergeRecord | AdapterRecord, merge: MergeRecord) -> None:
    """Write README.md and, where changes were measured, the figure. record: of the output, a model
    or an adapter; merge: with the inputs."""
    adapter = isinstance(record, AdapterRecord)
    figures = None
    if isinstance(record, MergeRecord) and record.totals is not None:
        figures = record.totals.figures
    names = list(figures.changes) if figures else []
    label = labels(names)
    models = dict.fromkeys(one.name for one in merge.inputs)
    text = render(
        _CARD,
        title=f"A {merge.method} merge of {', '.join(last_name(name) for name in models)}",
        models=list(models),
        method=merge.method,
        library="peft" if adapter else "transformers",
        adapter=adapter,
        readers=readers_of_record(record) if isinstance(record, AdapterRecord) else {},
        engine="float32, one rounding" if merge.engine == "native" else "in mergekit",
        versions=merge.versions,
        lines=summary(record),
        notes=merge.notes,
        recipe=merge.recipe.rstrip(),
        reference=last_name(merge.donor.config)
        if isinstance(record, MergeRecord) and measured_from_base(record)
        else "the first model of its slice",
        inputs=[label[name] for name in names],
        pairs=[pair_label(pair.models, label) for pair in figures.pairs] if figures else [],
        roles=_rows(record.roles, figures) if isinstance(record, MergeRecord) and figures else {},
    )
    write_text(folder / "README.md", text)
    if isinstance(record, MergeRecord) and figures and names:
        _draw(folder / FIGURE, record.tensors, figures, label)


@dataclass(frozen=True)
class _Row:
    """A role's row of both tables. lost: to storage; inputs: cells of the changes; pairs: of the
    conflicts."""

    tensors: int
    lost: str
    inputs: Markdown
    pairs: Markdown


def _rows(roles: Mapping[str, MergeTotals], all_: MergeFigures) -> dict[str, _Row]:
    """The rows of both tables by role, with cells for every change and pair in `all_`."""
    rows = {}
    for name, totals in roles.items():
        figures = totals.figures
        assert figures is not None
        rows[name] = _Row(
            totals.tensors,
            f"{figures.lost_to_storage:.2%}",
            _cells(_change_cells(figures.changes.get(one)) for one in all_.changes),
            _cells(_pair_cells(_pair(figures, pair.models)) for pair in all_.pairs),
        )
    return rows


def _cells(parts: Iterable[str]) -> Markdown:
    return Markdown("".join(parts))


def _pair(figures: MergeFigures, models: tuple[str, str]) -> PairFigures | None:
    return next((pair for pair in figures.pairs if set(pair.models) == set(models)), None)


def _change_cells(change: ChangeFigures | None) -> str:
    if change is None:
        return " | |"
    if not change.relative:
        return " unchanged | |"
    return f" {change.relative:.2%} | {change.retained:.2f} |"


def _pair_cells(pair: PairFigures | None) -> str:
    if pair is None or not pair.cosine:
        return " | | |"
    overlap = "n/a" if pair.overlap is None else f"{pair.overlap:.3f}"
    return f" {pair.sign_conflict:.1%} | {pair.cosine:.3f} | {overlap} |"


def _draw(
    path: Path, tensors: Mapping[str, TensorMerge], totals: MergeFigures, label: Mapping[str, str]
) -> None:
    """Draw the figure. Left: share of sign conflicts by layer and kind of matrix, or where no two
    changes are compared their sizes. Right: how much of each change the result retains, by layer.
    Layers of slices with fewer inputs may be missing from a line."""
    matrices = [
        (tensor.role, tensor.layer, tensor.figures)
        for tensor in tensors.values()
        if tensor.layer is not None and len(tensor.shape) > 1 and tensor.figures is not None
    ]
    conflicts = bool(totals.pairs)
    roles = dict.fromkeys(role for role, *_ in matrices)
    with figure(path, 2) as (left, right):
        for name, style in zip(roles, styles(), strict=False):
            points = []
            for role, layer, figures in matrices:
                values = [pair.sign_conflict for pair in figures.pairs]
                if not conflicts:
                    values = [change.relative for change in figures.changes.values()]
                if role == name and values:
                    points.append((layer, 100 * sum(values) / len(values)))
            if points:
                left.plot(*zip(*points, strict=True), label=name, **style)
        left.set_xlabel("layer")
        left.set_ylabel("opposite entries, %" if conflicts else "change / weights, %")
        if conflicts:
            left.set_ylim(0, 100)
        left.set_title("Sign conflicts between the changes" if conflicts else "Size of the change")
        legend(left)
        for name, style in zip(totals.changes, styles(), strict=False):
            by_layer: dict[int, list[float]] = {}
            for _, layer, figures in matrices:
                if name in figures.changes:
                    by_layer.setdefault(layer, []).append(figures.changes[name].retained)
            means = [(layer, sum(all_) / len(all_)) for layer, all_ in sorted(by_layer.items())]
            if means:
                right.plot(*zip(*means, strict=True), label=label[name], **style)
        right.set_xlabel("layer")
        right.set_ylabel("retained of the change")
        right.set_title("What the result retains of each change")
        low, high = right.get_ylim()
        right.set_ylim(min(0.0, low), max(1.05, high))
        legend(right)
        for axes in (left, right):
            whole_numbers(axes)
