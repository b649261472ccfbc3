"""The blocks of a recipe that are recipes of other commands, each with its lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from regraft.document import Document, RecipeValues, Where
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


def training_blocks(value: RecipeValues) -> Iterator[Where]:
    """Where the recipe has training recipes, except `recover`."""
    if isinstance(value.get("extend"), dict):
        yield ("extend",)
    if isinstance(base := value.get("base"), dict) and isinstance(base.get("train"), dict):
        yield ("base", "train")
    targets = value.get("targets")
    if isinstance(targets, dict) and isinstance(targets.get("train"), dict):
        yield ("targets", "train")
    for number, target in enumerate(targets if isinstance(targets, list) else ()):
        if isinstance(target, dict) and isinstance(target.get("train"), dict):
            yield ("targets", number, "train")


def refuse_many_processes(value: Any) -> InputError:
    """The error of a job that torchrun started: which blocks of the recipe `regraft train` runs in
    many processes, and how the job continues from their outputs."""
    recipe: RecipeValues = value if isinstance(value, dict) else {}
    trained = {where[0] for where in training_blocks(recipe)}
    names = {
        "base": "`base: FOLDER`",
        "extend": "`extended: FOLDER` (a LoRA: `adapter: FOLDER`) instead of extend",
        "targets": "`model: FOLDER` instead of a target's train",
    }
    text = "regraft graft runs in one process; start it without torchrun"
    if trained:
        named = " and ".join(name for block, name in names.items() if block in trained)
        text += (
            "; to train in many, run the block as a recipe of its own with `torchrun ... regraft "
            f"train`, then regraft graft with {named}"
        )
    if RECOVER in recipe:
        text += (
            "; to recover in many, run regraft graft without recover, then the block as a recipe "
            "with `torchrun ... regraft train`, `model: OUT/models/TARGET` and a teacher by folder"
        )
    return InputError(f"{text}.")


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
