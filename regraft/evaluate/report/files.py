"""The report of an evaluation as files: README.md, the figures and index.html."""

from __future__ import annotations

from pathlib import Path

from regraft import markdown
from regraft.evaluate.report.figures import draw
from regraft.evaluate.report.page import write_page
from regraft.evaluate.report.tables import tables
from regraft.evaluate.report.text import introduction, notes, title
from regraft.evaluate.result import EvaluationRecord
from regraft.write import write_text

_CARD = """\
# {{ title }}

{% for line in introduction %}
{{ line }}
{% endfor %}

{% for name, table in tables %}
## {{ name }}

{{ table }}

{% endfor %}
{% for figure in figures %}
![{{ figure }}]({{ figure }})

{% endfor %}
## How to read this

{% for line in notes %}
- {{ line }}
{% endfor %}

Every number is in [result.json](result.json), every answer in `items/`.
"""


def write_report(folder: Path, result: EvaluationRecord) -> None:
    """Write README.md, the figures and index.html to `folder`."""
    figures = draw(folder, result)
    text = markdown.render(
        _CARD, title=title(result), introduction=introduction(result), notes=notes(result),
        figures=figures,
        tables=[(name, markdown.table(rows)) for name, rows in tables(result)],
    )  # fmt: skip
    write_text(folder / "README.md", text)
    write_page(folder / "index.html", result)
