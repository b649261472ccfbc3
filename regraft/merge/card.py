"""The card beside a merge: what went in, what became of each change, what context it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from regraft.drawing import figure, legend, styles
from regraft.markdown import Markdown, last_name, render
from regraft.merge.conflicts import Figures, Pair, Report, role
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
{% for label, text in lines %}
{{ [label, text] | row }}
{% endfor %}

## Recipe

{{ recipe | fenced("yaml") }}
{% if inputs %}

## What became of each change

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
{% else %}
The config has the RoPE and the context length in both spellings.
{% endif %}
What a merge is worth is not known from weights: measure it at long and short positions before
relying on it.
"""


def write(
    folder: Path, record: Mapping[str, Any], lines: list[tuple[str, str]], report: Report | None
) -> None:
    """README.md and, where there is something to compare, the figure. `lines`: the summary;
    report: of a native merge into a model."""
    adapter = record["kind"] == "adapter"
    names = list(report.totals.changes) if report else []
    pairs = list(report.totals.pairs) if report else []
    label = labels(names)
    models = dict.fromkeys(one["name"] for one in record["inputs"])
    text = render(
        _CARD,
        title=f"A {record['method']} merge of {', '.join(last_name(name) for name in models)}",
        models=list(models),
        method=record["method"],
        library="peft" if adapter else "transformers",
        adapter=adapter,
        engine="float32, one rounding" if record["engine"] == "native" else "in mergekit",
        versions=record["versions"],
        lines=lines,
        notes=record.get("notes", []),
        recipe=record["recipe"].rstrip(),
        reference=last_name(record["donor"]["config"])
        if record["donor"]["why"] == "base_model"
        else "the first model of its slice",
        inputs=[label[name] for name in names],
        pairs=[pair_label(pair, label) for pair in pairs],
        roles=_rows(report) if report else {},
    )
    write_text(folder / "README.md", text)
    if report and names:
        _draw(folder / FIGURE, report, label)


def labels(names: list[str]) -> dict[str, str]:
    """A short name for each model reference, still telling them apart."""
    short = {name: "+".join(last_name(part) for part in name.split("+")) for name in names}
    twice = {label for label in short.values() if list(short.values()).count(label) > 1}
    return {name: name if label in twice else label for name, label in short.items()}


def _rows(report: Report) -> dict[str, dict[str, Any]]:
    """The rows of both tables by role."""
    return {
        name: {
            "tensors": report.counts[name],
            "lost": f"{figures.lost_to_storage:.2%}",
            "inputs": Markdown(
                "".join(_change_cells(figures, one) for one in report.totals.changes)
            ),
            "pairs": _cells(_pair_cells(figures, pair) for pair in report.totals.pairs),
        }
        for name, figures in report.roles.items()
    }


def _cells(parts: Iterable[str]) -> Markdown:
    return Markdown("".join(parts))


def _change_cells(figures: Figures, name: str) -> str:
    change = figures.changes.get(name)
    if change is None:
        return " | |"
    if not change.relative:
        return " unchanged | |"
    return f" {change.relative:.2%} | {change.retained:.2f} |"


def _pair_cells(figures: Figures, names: Pair) -> str:
    pair = figures.pairs.get(names)
    if pair is None or not pair.cosine:
        return " | | |"
    overlap = "n/a" if pair.overlap is None else f"{pair.overlap:.3f}"
    return f" {pair.sign_conflict:.1%} | {pair.cosine:.3f} | {overlap} |"


def _draw(path: Path, report: Report, label: Mapping[str, str]) -> None:
    """Left: how much the changes conflict (where no two are compared: how large they are), by layer
    and kind of matrix. Right: how much of each change the result retains, by layer. Slices with
    fewer inputs have no conflicts, so a layer may be missing from a line."""
    matrices = [
        (output, report.tensors[name])
        for name, output in report.outputs.items()
        if output.layer is not None and len(output.shape) > 1
    ]
    conflicts = bool(report.totals.pairs)
    with figure(path, 2) as (left, right):
        for name, style in zip(dict.fromkeys(role(o) for o, _ in matrices), styles(), strict=False):
            points = []
            for output, figures in matrices:
                values = [pair.sign_conflict for pair in figures.pairs.values()]
                if not conflicts:
                    values = [change.relative for change in figures.changes.values()]
                if role(output) == name and values:
                    points.append((output.layer, 100 * sum(values) / len(values)))
            if points:
                left.plot(*zip(*points, strict=True), label=name, **style)
        left.set_xlabel("layer")
        left.set_ylabel("opposite entries, %" if conflicts else "change / weights, %")
        if conflicts:
            left.set_ylim(0, 100)
        left.set_title("Sign conflicts between the changes" if conflicts else "Size of the change")
        legend(left)
        for name, style in zip(report.totals.changes, styles(), strict=False):
            by_layer: dict[int, list[float]] = {}
            for output, figures in matrices:
                if name in figures.changes and output.layer is not None:
                    by_layer.setdefault(output.layer, []).append(figures.changes[name].retained)
            lines = [(layer, sum(all_) / len(all_)) for layer, all_ in sorted(by_layer.items())]
            if lines:
                right.plot(*zip(*lines, strict=True), label=label[name], **style)
        right.set_xlabel("layer")
        right.set_ylabel("retained of the change")
        right.set_title("What the result retains of each change")
        low, high = right.get_ylim()
        right.set_ylim(min(0.0, low), max(1.05, high))
        legend(right)
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)


def pair_label(names: Pair, label: Mapping[str, str]) -> str:
    return f"{label[names[0]]} and {label[names[1]]}"
