"""The page on benchmarks: every table of benchmarks/results."""

from __future__ import annotations

import re
from pathlib import Path

from generate.text import anchor

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

_INTRODUCTION = """\
# Benchmarks

Each table was printed by the script of its name in `benchmarks/`. Date, versions and machine are
with the table."""


def heading(name: str) -> str:
    """The heading of a table on the page, which is the name of its script."""
    return f"{name}.py"


def link(name: str) -> str:
    """The address of a table: the page and its anchor."""
    return f"benchmarks.md#{anchor(heading(name))}"


def page() -> str:
    """All tables, each under the name of its script."""
    parts = [_INTRODUCTION]
    for path in sorted(RESULTS.glob("*.md")):
        text = re.sub(r"^(#+) ", r"##\1 ", path.read_text(encoding="utf-8").strip(), flags=re.M)
        text = re.sub(r"\]\((?:\.\./)+docs/", "](", text)
        text = re.sub(r"\]\((\w+\.png)\)", r"](benchmarks/\1)", text)
        parts += [f"## {heading(path.stem)}", text]
    return "\n\n".join(parts) + "\n"
