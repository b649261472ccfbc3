"""A command's result as text: one JSON object, or tables."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from regraft.errors import RegraftError
from regraft.units import plan_rows

if TYPE_CHECKING:
    from rich.console import RenderableType


def json_text(result: Any) -> str:
    """The result as JSON on one line. Raises RegraftError where it holds NaN or infinity."""
    try:
        return json.dumps(result, allow_nan=False)
    except ValueError:
        raise RegraftError(
            "The result holds NaN or infinity, which JSON cannot express; leave --json out to see "
            "it, and check the inputs for NaN."
        ) from None


def rendered(parts: Iterable[RenderableType]) -> str:
    """The parts as text, in the width and colours of the terminal if standard output is one."""
    from rich.console import Console

    terminal = Console()
    text = io.StringIO()
    console = Console(
        file=text, width=terminal.width, force_terminal=terminal.is_terminal, highlight=False
    )
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))
    return text.getvalue()


def label_table(title: str, rows: Iterable[tuple[str, str]]) -> RenderableType:
    """A table of (label, text) under a title, without markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    for label, text in rows:
        table.add_row(Text(label, "dim"), Text(text))
    return table


def plan_table(plan: Mapping[str, Any]) -> RenderableType:
    """The table of a dry run."""
    return label_table("Nothing is written (--dry-run)", plan_rows(plan))
