"""The card beside every output: what it is, what it carries, what it lost, how to serve it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.adapters import reader as format
from regraft.drawing import figure, from_zero, legend, render, styles
from regraft.rope import ContextSpec
from regraft.units import format_share
from regraft.write import write_text

ADAPTER_FIGURE, GRAFT_FIGURE = "extraction.png", "graft.png"

_ADAPTER = """\
---
library_name: peft
{% if hub_id %}
base_model: {{ hub_id }}
{% endif %}
tags: [regraft, lora, long-context]
---
# {{ title }}

A LoRA that carries what **{{ extended }}** learned beyond **{{ base }}**, extracted by
[regraft](https://pypi.org/project/regraft/) {{ versions.regraft }} (certified truncated SVD of the
weight difference).

| | |
|---|---|
{% for label, text in lines %}
| {{ label }} | {{ text }} |
{% endfor %}

The weights are half of it: **the RoPE must change with them.** `regraft apply` does both:

    regraft apply {{ folder }} CHECKPOINT -o OUT

## Error by kind of module

Frobenius error of the stored adapter against the true difference, 0 is exact. "best" is a proven
lower bound for any adapter of these ranks.

| module | modules | rank | change / weights | kept above noise | error | best |
|---|---|---|---|---|---|---|
{% for row in rows %}
| {{ row.values() | join(" | ") }} |
{% endfor %}

![Singular values and error by layer](extraction.png)

## Not in this adapter
{% if missing %}

| what | tensors changed | share of all change | largest change of a tensor |
|---|---|---|---|
{% for row in missing %}
| {{ row.role }} | {{ row.changed }} of {{ row.tensors }} | {{ row.share }} | {{ row.largest }} |
{% endfor %}
{% else %}

Nothing that changed.
{% endif %}

## Serving it without `regraft apply`

The adapter alone does not change a server's RoPE. On the base model:

    {{ vllm }}

    {{ llamacpp }}
"""

_GRAFT = """\
---
library_name: transformers
{% if hub_id %}
base_model: {{ hub_id }}
{% endif %}
tags: [regraft, long-context]
---
# {{ title }}

**{{ checkpoint }}** with the change of the adapter **{{ adapter }}** grafted on by
[regraft](https://pypi.org/project/regraft/) {{ versions.regraft }}.

| | |
|---|---|
{% for label, text in lines %}
| {{ label }} | {{ text }} |
{% endfor %}

## What changed

"lost" is the part of the change that rounding to the stored dtype took, relative to the change.

| tensors | how many | norm of the change | lost |
|---|---|---|---|
{% for role, row in roles.items() %}
| {{ role }} | {{ row.tensors }} | {{ "%.4g" % row.change_norm }} |
{{- " %.2f%%" % (100 * row.lost_to_storage) }} |
{% endfor %}
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


def write_adapter_card(
    folder: Path, record: Mapping[str, Any], lines: list[tuple[str, str]]
) -> None:
    """README.md and the figure of an extracted adapter. `lines`: the summary a person sees."""
    modules = record["modules"]
    after = ContextSpec.from_json(record["context"]["extended"])
    rank = record["totals"]["rank_stored"] or record["totals"]["rank_max"]
    text = render(
        _ADAPTER,
        title=f"{_last(record['extended']['name'])} as a LoRA of {_last(record['base']['name'])}",
        hub_id=_hub_id(record["base"]),
        base=record["base"]["name"],
        extended=record["extended"]["name"],
        versions=record["versions"],
        lines=lines,
        folder="ADAPTER",
        rows=[_row(leaf, members) for leaf, members in _by_leaf(modules).items()],
        missing=[
            {
                "role": role,
                "changed": fact["changed"],
                "tensors": fact["tensors"],
                "share": f"{fact['share_of_all_change']:.2%}",
                "largest": format_share(fact["largest_relative_delta"]),
            }
            for role, fact in record["not_captured"].items()
            if fact["changed"]
        ],
        vllm=vllm_flags(record["base"]["name"], after, rank),
        llamacpp=llamacpp_flags(after),
    )
    write_text(folder / "README.md", text)
    _draw_extraction(folder / ADAPTER_FIGURE, modules)


def write_graft_card(folder: Path, record: Mapping[str, Any], lines: list[tuple[str, str]]) -> None:
    """README.md and the figure of a grafted checkpoint."""
    name = record["checkpoint"]["name"]
    text = render(
        _GRAFT,
        title=f"{_last(name)} with {_last(record['adapter']['name'])}",
        hub_id=_hub_id(record["checkpoint"]),
        checkpoint=name,
        adapter=record["adapter"]["name"],
        versions=record["versions"],
        lines=lines,
        roles=record["roles"],
        distances=(record["lineage"] or {}).get("roles"),
    )
    write_text(folder / "README.md", text)
    _draw_graft(folder / GRAFT_FIGURE, record["tensors"])


def vllm_flags(base: str, context: ContextSpec, rank: int) -> str:
    """The command that serves base + adapter with the adapter's context in vLLM.

    vLLM's RoPE is the server's, not the adapter's, so it goes through --hf-overrides together with
    the length (vllm issue 9490); max-lora-rank must be one of the ranks it knows.
    """
    overrides = {
        "rope_parameters": context.rope_parameters,
        "max_position_embeddings": context.max_position_embeddings,
    }
    allowed = next((r for r in format.VLLM_RANKS if r >= rank), None)
    lora = (
        f"--enable-lora --max-lora-rank {allowed} --lora-modules long=ADAPTER"
        if allowed
        else f"(rank {rank} is more than vLLM takes: graft it with `regraft apply` instead)"
    )
    return (
        f"vllm serve {shlex.quote(base)} {lora} --max-model-len {context.max_position_embeddings} "
        f"--hf-overrides {shlex.quote(json.dumps(overrides))}"
    )


def llamacpp_flags(context: ContextSpec) -> str:
    """The flags that give llama.cpp the adapter's context."""
    flags = [f"-c {context.max_position_embeddings}", f"--rope-freq-base {context.theta:.0f}"]
    scaling = context.rope_parameters
    if context.rope_type == "linear":
        flags.append(f"--rope-scaling linear --rope-scale {scaling['factor']:g}")
    elif context.rope_type == "yarn":
        original = scaling.get("original_max_position_embeddings")
        flags.append(f"--rope-scaling yarn --rope-scale {scaling['factor']:g}")
        if original:
            flags.append(f"--yarn-orig-ctx {original}")
    elif context.rope_type != "default":
        return (
            f"(llama.cpp has no flags for {context.rope_type} RoPE: graft with `regraft apply` and "
            "convert the result)"
        )
    return f"llama-server -m BASE.gguf --lora ADAPTER.gguf {' '.join(flags)}"


def _hub_id(model: Mapping[str, Any]) -> str | None:
    """org/name for the front matter, where the Hub shows a link; None for a local folder."""
    return None if model["revision"] is None else str(model["name"]).partition("@")[0]


def _last(name: str) -> str:
    return Path(name).name or name


def _by_leaf(modules: Mapping[str, Any]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for name, fact in modules.items():
        groups.setdefault(name.rpartition(".")[2], []).append(fact)
    return groups


def _row(leaf: str, members: list[Any]) -> dict[str, Any]:
    ranks = sorted({fact["rank"] for fact in members})
    kept = [f["energy_above_floor"] for f in members if f["energy_above_floor"] is not None]
    error = sum(fact["error"] for fact in members) / len(members)
    best = sum(fact["least_possible_error"] for fact in members)
    return {
        "leaf": leaf,
        "count": len(members),
        "rank": str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
        "relative": f"{sum(f['relative_delta'] for f in members) / len(members):.2%}",
        "kept": f"{sum(kept) / len(kept):.1%}" if kept else "n/a",
        "error": f"{error:.4f}",
        "best": f"{best / len(members):.4f}",
    }


def _draw_extraction(path: Path, modules: Mapping[str, Any]) -> None:
    """Left: singular values by kind of module, first layer with it. Right: error by layer."""
    with figure(path, 2) as (left, right):
        for (leaf, members), style in zip(_by_leaf(modules).items(), styles(), strict=False):
            values = members[len(members) // 2]["spectrum"]
            left.loglog(range(1, len(values) + 1), values, label=leaf, **{**style, "marker": ""})
            layers = _layers(modules, leaf)
            if len(layers) > 1:
                right.plot(*zip(*layers, strict=True), label=leaf, **style)
            else:
                right.plot([leaf], [layers[0][1]], **style)
        edges = [fact["noise_edge"] for fact in modules.values()]
        if min(edges) > 0.02 * min(fact["spectrum"][-1] for fact in modules.values()):
            middle = sorted(edges)[len(edges) // 2]
            left.axhline(middle, color="#999999", linewidth=1)
            left.annotate("rounding noise", (1, middle), fontsize=7, va="bottom", color="#666666")
        left.set(
            xlabel="index", ylabel="singular value", title="Spectrum of the change, middle layer"
        )
        legend(left)
        right.set(xlabel="layer", ylabel="relative error", title="Error of the adapter by layer")
        from_zero(right)


def _layers(modules: Mapping[str, Any], leaf: str) -> list[tuple[int, float]]:
    found = []
    for name, fact in modules.items():
        parts = name.split(".")
        if parts[-1] == leaf:
            number = next((int(part) for part in parts if part.isdigit()), 0)
            found.append((number, fact["error"]))
    return sorted(found)


def _draw_graft(path: Path, tensors: Mapping[str, Any]) -> None:
    """Left: norm of the change by layer. Right: share of it lost to storage."""
    groups: dict[str, list[tuple[int, float, float]]] = {}
    for name, fact in tensors.items():
        parts = name.removesuffix(".weight").split(".")
        number = next((int(part) for part in parts if part.isdigit()), 0)
        groups.setdefault(parts[-1], []).append(
            (number, fact["change_norm"], fact["lost_to_storage"])
        )
    with figure(path, 2) as (left, right):
        for (leaf, points), style in zip(groups.items(), styles(), strict=False):
            numbers, norms, lost = zip(*sorted(points), strict=True)
            left.plot(numbers, norms, label=leaf, **style)
            right.plot(numbers, [100 * share for share in lost], label=leaf, **style)
        left.set(xlabel="layer", ylabel="norm", title="Change added to each tensor")
        right.set(xlabel="layer", ylabel="% of the change", title="Lost by rounding to storage")
        from_zero(left)
        from_zero(right)
        legend(left)
