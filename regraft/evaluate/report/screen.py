"""The result on the screen: a summary and tables."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from regraft.evaluate.report.summary import summary
from regraft.evaluate.report.tables import MANY_TASKS, tables
from regraft.evaluate.result import EvaluationRecord


def render(result: EvaluationRecord) -> list[RenderableType]:
    """The summary and the tables; if there are many tasks, without those of single tasks."""
    parts: list[RenderableType] = [Text(line) for line in summary(result)]
    for name, cells in tables(result, brief=len(result.tasks) > MANY_TASKS):
        table = Table(title=Text(name), title_justify="left")
        for number, head in enumerate(cells[0]):
            table.add_column(Text(head), justify="left" if number == 0 else "right")
        for row in cells[1:]:
            table.add_row(*map(Text, row))  # a model's name is not markup
        parts.append(table)
    return parts
