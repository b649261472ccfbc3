"""The model card of a training: its stages, its results, and how to use and repeat it."""

from __future__ import annotations

from pathlib import Path

from regraft.adapters.serving import readers_of_record
from regraft.markdown import hub_id, last_name, render
from regraft.records import AdapterRecord
from regraft.rope import ContextSpec
from regraft.train.output.curves import CURVES
from regraft.train.recipe.schema import Body
from regraft.train.record import TrainingRecord
from regraft.units import format_tokens
from regraft.write import write_text

_TEMPLATE = """\
---
{% if hub_id %}
base_model: {{ hub_id | yaml }}
{% endif %}
library_name: {{ "peft" if adapter else "transformers" }}
tags: [regraft, long-context]
---

# {{ title }}

{% for label, text in lines %}
- **{{ label }}**: {{ text }}
{% endfor %}

| stage | length | theta | steps | rows a step | rate | |
|--:|--:|--:|--:|--:|--:|---|
{{ stages | rows }}

![training]({{ curves }})

{% if adapter %}
It is an adapter for {{ base }} and its relatives, and has its context in its record:

    regraft apply THIS-FOLDER CHECKPOINT -o OUT

| program | loads it |
|---|---|
{{ readers.items() | rows }}
{% else %}
config.json states the context in both spellings, `rope_parameters` and `rope_theta`.
{% endif %}

Trained by `regraft train recipe.yaml`: that file, `metrics.jsonl` (a line for each step) and
`train.json` (inputs with their hashes, versions) are beside this one. {{ versions }}.
"""


def write_card(
    folder: Path,
    record: TrainingRecord,
    body: Body,
    lines: list[tuple[str, str]],
    adapter: AdapterRecord | None,
) -> None:
    """Write README.md. lines: (label, text), as printed after the run. adapter: its record, if an
    adapter was exported."""
    name = record.base.name
    stages = []
    for i, (stage, context) in enumerate(zip(body.stages, record.context.stages, strict=True), 1):
        spec = ContextSpec.from_record(context)
        stopped = record.stopped.get(str(i), "")
        cells = (
            i, format_tokens(stage.length), f"{spec.theta:.6g}", record.stage_steps[i - 1],
            stage.batch, f"{stage.rate:g}", stopped,
        )  # fmt: skip
        stages.append(cells)
    text = render(
        _TEMPLATE,
        title=f"{last_name(name)}, trained ({body.method})",
        base=name,
        hub_id=hub_id(name, record.base.revision),
        adapter=adapter is not None,
        readers=readers_of_record(adapter) if adapter is not None else {},
        lines=lines,
        stages=stages,
        curves=CURVES,
        versions=", ".join(f"{key} {value}" for key, value in record.versions.items()),
    )
    write_text(folder / "README.md", text)
