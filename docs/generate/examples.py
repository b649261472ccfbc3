"""The page with the recipes of examples/, as they stand."""

from __future__ import annotations

from pathlib import Path

from generate.text import anchor
from regraft.markdown import fenced

EXAMPLES = Path(__file__).parents[2] / "examples"


def link(name: str) -> str:
    """The address of a recipe: the page and its anchor."""
    return f"reference/examples.md#{anchor(name)}"


def page() -> str:
    """Every recipe under the name of its file."""
    parts = ["# Examples", "The recipes of `examples/`."]
    for path in sorted(EXAMPLES.glob("*.yaml")):
        parts += [f"## {path.name}", fenced(path.read_text(encoding="utf-8"), "yaml")]
    return "\n\n".join(parts) + "\n"
