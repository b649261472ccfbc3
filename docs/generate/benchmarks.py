"""The page on benchmarks: every table of benchmarks/results."""

from __future__ import annotations

import re
from pathlib import Path

from generate.text import anchor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"

_INTRODUCTION = """\
# Benchmarks

Each table was printed by the script of its name in `benchmarks/`, or by the command that is given
with it. Date, versions and machine are with the table."""


def heading(name: str) -> str:
    """The heading of a table on the page: the name of its script, if it has one."""
    return f"{name}.py" if (BENCHMARKS / f"{name}.py").is_file() else name


def link(name: str) -> str:
    """The address of a table: the page and its anchor."""
    return f"benchmarks.md#{anchor(heading(name))}"


def page() -> str:
    """All tables, each under its heading."""
    parts = [_INTRODUCTION]
    for path in sorted(RESULTS.glob("*.md")):
        text = re.sub(r"^(#+) ", r"##\1 ", path.read_text(encoding="utf-8").strip(), flags=re.M)
        text = re.sub(r"\]\((?:\.\./)+docs/", "](", text)
        text = re.sub(r"\]\((\w+\.png)\)", r"](benchmarks/\1)", text)
        parts += [f"## {heading(path.stem)}", text]
    return "\n\n".join(parts) + "\n"
