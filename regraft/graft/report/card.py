"""The card of a grafted model, ready for a hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regraft.adapters.serving import model_commands
from regraft.evaluate.report.figures import draw
from regraft.evaluate.report.tables import MANY_TASKS, Rows, tables
from regraft.evaluate.result import EvaluationRecord
from regraft.graft.change import LogitChange
from regraft.graft.choose import SweepRecord
from regraft.graft.report.findings import findings
from regraft.graft.report.licences import Licence, common_licence
from regraft.graft.report.sweep import draw_sweep, sweep_table
from regraft.markdown import render, table
from regraft.records import versions
from regraft.rope import ContextSpec
from regraft.write import write_text

SWEEP_FIGURE = "sweep.png"
_CARD = """\
---
library_name: transformers
{% if licence %}
license: {{ licence | yaml }}
{% endif %}
{% if hub_id %}
base_model: {{ hub_id | yaml }}
{% endif %}
tags: [regraft, long-context]
---
# {{ name }}, {{ length }}

{{ story }} Made by [regraft](https://pypi.org/project/regraft/).

| | |
|---|---|
{{ lines | rows }}

{% if findings %}
## What it can do

{% for line in findings %}
{{ line }}
{% endfor %}

{% for title, rows in tables %}
### {{ title }}

{{ rows }}

{% endfor %}
{% for figure in figures %}
![{{ figure }}]({{ figure }})

{% endfor %}
{% endif %}
{% if sweep %}
## Ranks and scales

{{ why }}

{{ sweep }}

![Transfer by retention]({{ sweep_figure }})

{% endif %}
## Run it

The config has the RoPE and the length in both spellings (`rope_parameters` for transformers 5,
`rope_theta` and `rope_scaling` for older readers), so no program needs a RoPE flag; each takes as
an option the length to reserve memory for.

{% for program, command in commands %}
{{ program }}:

{{ command | fenced }}

{% endfor %}
## Licences

{% if licences %}
The licences of all of these models apply to this one.

{{ licences }}
{% else %}
It contains no published model: all were trained by the recipe.
{% endif %}

## Recipe

{{ recipe | fenced("yaml") }}

Versions: {{ versions }}.
"""


@dataclass(frozen=True)
class CardFacts:
    """The contents of a model's card. story: a sentence on the models of the graft; hub_id: of the
    target; before, after: the context."""

    name: str
    story: str
    hub_id: str | None
    before: ContextSpec
    after: ContextSpec
    recipe: str
    licences: Sequence[Licence]
    change: LogitChange
    report: EvaluationRecord | None
    sweep: SweepRecord | None


def write_model_card(folder: Path, facts: CardFacts) -> None:
    """Write README.md and its figures."""
    figures: list[str] = []
    if facts.report is not None:
        figures = draw(folder, facts.report)
    if facts.sweep is not None:
        draw_sweep(folder / SWEEP_FIGURE, facts.sweep)
    text = render(
        _CARD,
        name=facts.name,
        length=facts.after.describe(),
        licence=common_licence(facts.licences),
        hub_id=facts.hub_id,
        story=facts.story,
        lines=[
            ("context", f"{facts.before.describe()}  ->  {facts.after.describe()}"),
            ("what changed", facts.change.describe()),
        ],
        findings=findings(facts.report) if facts.report is not None else [],
        tables=[(title, table(rows)) for title, rows in _tables(facts.report)]
        if facts.report is not None
        else [],
        figures=figures,
        sweep=table(sweep_table(facts.sweep)) if facts.sweep is not None else None,
        why=facts.sweep.why if facts.sweep is not None else None,
        sweep_figure=SWEEP_FIGURE,
        commands=list(model_commands(facts.name, facts.after).items()),
        licences=table(
            [
                ["model", "licence"],
                *([licence.model, licence.licence] for licence in facts.licences),
            ]
        )
        if facts.licences
        else None,
        recipe=facts.recipe,
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )
    write_text(folder / "README.md", text)


def _tables(report: EvaluationRecord) -> list[tuple[str, Rows]]:
    return tables(report, brief=len(report.tasks) > MANY_TASKS)
