"""The card beside a merge: what went in, what became of each change, what context it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.drawing import figure, legend, render, styles

FIGURE = "merge.png"

_CARD = """\
---
library_name: {{ library }}
base_model:
{% for name in models %}
  - {{ name }}
{% endfor %}
tags: [regraft, merge]
---
# {{ title }}

{{ models | length }} models merged with `{{ method }}` by
[regraft](https://pypi.org/project/regraft/) {{ versions.regraft }} ({{ engine }}).

| | |
|---|---|
{% for label, text in lines %}
| {{ label }} | {{ text }} |
{% endfor %}

## Recipe

```yaml
{{ recipe }}
```
{% if inputs %}

## What became of each change

A change is a model minus {{ reference }}. "kept" is the part of it that the result still has (1 is
all of it); "lost" is the part of the merged change that rounding to the stored dtype took.

| tensors | how many | lost |{% for name in inputs %} {{ name }}: change | kept |{% endfor %}

|---|---|---|{% for name in inputs %}---|---|{% endfor %}

{% for role, row in roles.items() %}
| {{ role }} | {{ row.tensors }} | {{ row.lost }} |{{ row.inputs }}
{% endfor %}
{% if pairs %}

## Conflicts

Entries that two changes move apart, the cosine between the changes, and how far their 8 leading
directions are the same (estimated from sampled rows).

| tensors |{% for name in pairs %} {{ name }}: apart | cosine | overlap |{% endfor %}

|---|{% for name in pairs %}---|---|---|{% endfor %}

{% for role, row in roles.items() %}
| {{ role }} |{{ row.pairs }}
{% endfor %}
{% endif %}

![Conflicts by layer](merge.png)
{% endif %}

{% if adapter %}
The RoPE must change with the weights: `regraft apply` does both.
{% else %}
The config has the RoPE and the context length in both spellings.
{% endif %}
What a merge is worth is not known from weights: measure it at long and short positions before
relying on it.
"""


def write(folder: Path, record: Mapping[str, Any], lines: list[tuple[str, str]]) -> None:
    """README.md and, where there is something to compare, the figure. `lines`: the summary."""
    totals, adapter = record["totals"], record["kind"] == "adapter"
    names = list(totals.get("relative_change", {}))
    pairs = list(totals.get("cosine", {}))
    label = labels(names)
    models = dict.fromkeys(one["name"] for one in record["inputs"])
    text = render(
        _CARD,
        title=f"A {record['method']} merge of {', '.join(_last(name) for name in models)}",
        models=list(models),
        method=record["method"],
        library="peft" if adapter else "transformers",
        adapter=adapter,
        engine="float32, one rounding" if record["engine"] == "native" else "in mergekit",
        versions=record["versions"],
        lines=lines,
        recipe=record["recipe"].rstrip(),
        reference=_last(record["donor"]["config"])
        if record["donor"]["why"] == "base_model"
        else "the first model of its slice",
        inputs=[label[name] for name in names],
        pairs=[pair_label(name, label) for name in pairs],
        roles={
            role: {
                "tensors": row["tensors"],
                "lost": f"{row['lost_to_storage']:.2%}",
                "inputs": "".join(_input(row, name) for name in names),
                "pairs": "".join(_conflict(row, name) for name in pairs),
            }
            for role, row in record.get("roles", {}).items()
        },
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    if names:
        _draw(folder / FIGURE, record, names, pairs, label)


def labels(names: list[str]) -> dict[str, str]:
    """A short name for each model reference, still telling them apart."""
    short = {name: "+".join(_last(part) for part in name.split("+")) for name in names}
    twice = {label for label in short.values() if list(short.values()).count(label) > 1}
    return {name: name if label in twice else label for name, label in short.items()}


def _input(row: Mapping[str, Any], name: str) -> str:
    if not row.get("relative_change", {}).get(name):
        return " unchanged | |"
    return f" {row['relative_change'][name]:.2%} | {row['kept'][name]:.2f} |"


def _conflict(row: Mapping[str, Any], name: str) -> str:
    if not row.get("cosine", {}).get(name):
        return " | | |"
    overlap = row["overlap"][name]
    shown = "n/a" if overlap is None else f"{overlap:.3f}"
    return f" {row['sign_conflict'][name]:.1%} | {row['cosine'][name]:.3f} | {shown} |"


def _draw(
    path: Path,
    record: Mapping[str, Any],
    names: list[str],
    pairs: list[str],
    label: Mapping[str, str],
) -> None:
    """Left: how much the changes conflict (one change: how large it is), by layer and kind of
    matrix. Right: how much of each change the result keeps, by layer."""
    tensors = [t for t in record["tensors"].values() if t["layer"] is not None and "kept" in t]
    roles = list(dict.fromkeys(t["role"] for t in tensors if len(t["shape"]) > 1))
    with figure(path, 2) as (left, right):
        for name, style in zip(roles, styles(), strict=False):
            points = []
            for tensor in tensors:
                if tensor["role"] == name:
                    values = tensor["sign_conflict" if pairs else "relative_change"].values()
                    points.append((tensor["layer"], 100 * sum(values) / len(values)))
            left.plot(*zip(*points, strict=True), label=name, **style)
        left.set_xlabel("layer")
        left.set_ylabel("entries moved apart, %" if pairs else "change / weights, %")
        if pairs:
            left.set_ylim(0, 100)
        left.set_title("Sign conflicts between the changes" if pairs else "Size of the change")
        legend(left)
        for name, style in zip(names, styles(), strict=False):
            by_layer: dict[int, list[float]] = {}
            for tensor in tensors:
                if name in tensor["kept"] and len(tensor["shape"]) > 1:
                    by_layer.setdefault(tensor["layer"], []).append(tensor["kept"][name])
            points = [(layer, sum(kept) / len(kept)) for layer, kept in sorted(by_layer.items())]
            if points:
                right.plot(*zip(*points, strict=True), label=label[name], **style)
        right.set_xlabel("layer")
        right.set_ylabel("kept of the change")
        right.set_title("What the result keeps of each change")
        low, high = right.get_ylim()
        right.set_ylim(min(0.0, low), max(1.05, high))
        legend(right)
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)


def pair_label(name: str, label: Mapping[str, str]) -> str:
    one, other = name.split(" | ")
    return f"{label[one]} and {label[other]}"


def _last(name: str) -> str:
    return Path(name).name or name
