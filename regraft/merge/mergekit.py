"""The bridge to mergekit, for what is not native; a separate process, its result checked."""

from __future__ import annotations

from regraft.merge.inputs import Inputs
from regraft.merge.recipe import Recipe


def reason(recipe: Recipe, inputs: Inputs, engine: str) -> str | None:
    """Why the merge has to run in mergekit; None if it runs natively."""
    return None
