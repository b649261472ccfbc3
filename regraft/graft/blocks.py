"""The blocks of a recipe that are recipes of other commands, each with its lines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from regraft.document import Document
from regraft.errors import InputError
from regraft.recipe import Mistakes, RecipeError
from regraft.train.recipe.recipe import Recipe as TrainingRecipe

RECOVER = "recover"
GRAFTED = "graft"  # the model of a recover block: what it recovers


def include(mistakes: Mistakes, read: Callable[[], object]) -> None:
    """Note the mistakes for which `read` raises InputError."""
    try:
        read()
    except RecipeError as error:
        mistakes.include(error)
    except InputError as error:
        mistakes.add((), str(error))


def training_block(document: Document, *where: str | int) -> Document:
    """The training recipe at `where`, which trains `base` where it names no model."""
    return document.part(*where, model="base")


def recover_block(document: Document) -> Document:
    """The training recipe of `recover:`, in place or in a file beside the recipe's, whose model is
    the graft where it names none."""
    block: Any = document.value[RECOVER]
    if not isinstance(block, str):
        return document.part(RECOVER, model=GRAFTED, method="recover")
    other = Document.read(Path(document.name).parent / block)
    if not isinstance(other.value, dict):
        raise other.error((), "a recipe is a mapping such as 'method: recover'.")
    return other.part(model=GRAFTED, method="recover")


def check_recover(document: Document, mistakes: Mistakes) -> None:
    """Note the mistakes of `recover:`, if there is one."""
    block = document.value.get(RECOVER)
    if isinstance(block, str):
        try:
            TrainingRecipe(recover_block(document))
        except InputError as error:  # its lines are those of the other file
            mistakes.add((RECOVER,), str(error))
    elif isinstance(block, dict):
        include(mistakes, partial(TrainingRecipe, recover_block(document)))
