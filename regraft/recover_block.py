"""The blocks of a merge recipe that later commands run: `recover:` and `evaluate:`.

`regraft merge` checks them, so that a mistake is found before hours of merging, and says that it
does not run them. `recover:` is a training recipe, in place or in a file of its own.
"""

from __future__ import annotations

from pathlib import Path

from regraft import progress
from regraft.document import Document
from regraft.train.recipe.recipe import Recipe


def check_later_blocks(recipe: str | Path) -> None:
    """Raise InputError, with the line, for a mistake in `recover:`."""
    document = Document.read(recipe)
    keys = document.value if isinstance(document.value, dict) else {}
    for key in sorted({"recover", "evaluate"} & keys.keys()):
        progress.warn(f"`{key}:` is checked and not run by `regraft merge`.")
    block = keys.get("recover")
    if isinstance(block, dict):
        Recipe(document.part("recover", model=str(recipe), method="recover"))
    elif isinstance(block, str):
        Recipe.read(Path(recipe).parent / block)
