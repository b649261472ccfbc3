"""The demo's recipe with a few steps, too few to learn anything."""

from __future__ import annotations

import re
from pathlib import Path

from regraft.demo.job import RECIPE

_TEXT = RECIPE.read_text()
_SHORT = (
    (r"\bsteps: \d+", "steps: 2"), (r"\bwarmup: \d+", "warmup: 0"), (r"\bbatch: \d+", "batch: 2"),
    (r"\brows: \d+", "rows: 2"), (r"\bdocuments: \d+", "documents: 12"),
    (r"length: (512|1k)", "length: 128"), (r"words: (514|1026)", "words: 130"),
    (r"scales: .*", "scales: [1.0]"), (r"lengths: .*\]", "lengths: [64, 128]"),
    (r"items: \d+", "items: 2"), (r"texts: \d+", "texts: 1"),
)  # fmt: skip


def write_short_recipe(path: Path, ranks: str = "[16]") -> Path:
    """Write the recipe with `ranks` to `path`, which it returns."""
    text = re.sub(r"ranks: .*", f"ranks: {ranks}", _TEXT)
    for pattern, replacement in _SHORT:
        text = re.sub(pattern, replacement, text)
    path.write_text(text)
    return path
