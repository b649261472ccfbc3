"""The model card of a grafted checkpoint: its change, rounding error and distance from the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from regraft.drawing import figure, from_zero, legend, styles, whole_numbers
from regraft.markdown import hub_id, last_name, render
from regraft.records import GraftRecord, TensorGraft
from regraft.write import write_text

FIGURE = "graft.png"

_CARD = """\
---
library_name: transformers
{% if hub_id %}
base_model: {{ hub_id | yaml }}
{% endif %}
tags: [regraft, long-context]
---
# {{ title }}

**{{ checkpoint }}** with the change of the adapter **{{ adapter }}** grafted on by
[regraft](https://pypi.org/project/regraft/) {{ versions.regraft }}.

| | |
|---|---|
{{ lines | rows }}

## What changed

Rounding to the stored dtype leaves an error in every tensor. "retained" is how much of the change
reaches the file along the change's own direction; "error" is the norm of the rounding error
relative to the change, spread over all directions as in any model of this dtype.

| tensors | how many | norm of the change | retained | error |
|---|---|---|---|---|
{% for role, row in roles.items() %}
| {{ role }} | {{ row.tensors }} | {{ "%.4g" % row.change_norm }} | {{
"%.2f%%" % (100 * row.retained) }} | {{ "%.2f%%" % (100 * row.lost_to_storage) }} |
{% endfor %}
{% if guard %}

## Guard

The change of each weight is scaled by 1 - sigmoid(12 m - 6), with m the distance of that weight
from the guard, mapped to 0 to 1 over its tensor. Mean of these factors:

| module | mean | smallest | largest |
|---|---|---|---|
{% for name, scales in guard.items() %}
| {{ name }} | {{ "%.1f%%" % (100 * scales.mean) }} | {{
"%.1f%%" % (100 * scales.smallest) }} | {{ "%.1f%%" % (100 * scales.largest) }} |
{% endfor %}

Guard: {{ guard_model.name }}
{%- if guard_model.revision %} at {{ guard_model.revision }}{% endif %}
, {{ guard_model.fingerprint }}.
{% endif %}
{% if distances %}

## Lineage

Distance between the adapter's base and this checkpoint before the graft, from sampled weights:

| tensors | distance | cosine |
|---|---|---|
{% for role, row in distances.items() %}
| {{ role }} | {{ "%.2f%%" % (100 * row.distance) }} | {{ "%.5f" % row.cosine }} |
{% endfor %}
{% endif %}

![Change by layer](graft.png)

The config has the RoPE and the context length in both spellings (`rope_parameters` for
transformers 5, `rope_theta` and `rope_scaling` for older readers). What the graft is worth is not
known from weights: measure it at long and short positions before relying on it.
"""


def write_graft_card(folder: Path, record: GraftRecord, lines: list[tuple[str, str]]) -> None:
    """Write README.md and the figure of a grafted checkpoint. lines: (label, text) of the
    summary."""
    name = record.checkpoint.name
    text = render(
        _CARD,
        title=f"{last_name(name)} with {last_name(record.adapter.name)}",
        hub_id=hub_id(name, record.checkpoint.revision),
        checkpoint=name,
        adapter=record.adapter.name,
        versions=record.versions,
        lines=lines,
        roles=record.roles,
        distances=record.lineage.roles if record.lineage else {},
        guard=_guard_scales(record.tensors) if record.guard else {},
        guard_model=record.guard.model if record.guard else None,
    )
    write_text(folder / "README.md", text)
    _draw(folder / FIGURE, record.tensors)


@dataclass(frozen=True)
class _Scales:
    """The mean factors of a guard, of the tensors of one kind in all layers."""

    mean: float
    smallest: float
    largest: float


def _guard_scales(tensors: Mapping[str, TensorGraft]) -> dict[str, _Scales]:
    groups: dict[str, list[float]] = {}
    for name, change in tensors.items():
        if change.guard_scale is not None:
            leaf = name.removesuffix(".weight").rpartition(".")[2]
            groups.setdefault(leaf, []).append(change.guard_scale)
    return {
        leaf: _Scales(sum(scales) / len(scales), min(scales), max(scales))
        for leaf, scales in groups.items()
    }


def _draw(path: Path, tensors: Mapping[str, TensorGraft]) -> None:
    """Draw the norm of the change by layer, left, and the share lost to storage, right."""
    groups: dict[str, list[tuple[int, float, float]]] = {}
    for name, change in tensors.items():
        parts = name.removesuffix(".weight").split(".")
        number = next((int(part) for part in parts if part.isdigit()), 0)
        groups.setdefault(parts[-1], []).append(
            (number, change.change_norm, change.lost_to_storage)
        )
    with figure(path, 2) as (left, right):
        for (leaf, points), style in zip(groups.items(), styles(), strict=False):
            numbers, norms, lost = zip(*sorted(points), strict=True)
            left.plot(numbers, norms, label=leaf, **style)
            right.plot(numbers, [100 * share for share in lost], label=leaf, **style)
        left.set(xlabel="layer", ylabel="norm", title="Change added to each tensor")
        right.set(xlabel="layer", ylabel="% of the change", title="Lost by rounding to storage")
        for axes in (left, right):
            from_zero(axes)
            whole_numbers(axes)
        legend(left)
