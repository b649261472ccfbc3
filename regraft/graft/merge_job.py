"""A merge recipe as a job: `recover:` and `evaluate:` in it are run after the merge.

`regraft merge` checks these blocks too, so that a mistake is found before hours of merging, and
says that it does not run them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from regraft import progress
from regraft.document import Document, RecipeValues
from regraft.graft.blocks import RECOVER, check_recover, include, recover_block
from regraft.graft.schema import Evaluate, check_evaluation
from regraft.merge.recipe.recipe import Recipe
from regraft.recipe import BaseRecipe, Mistakes

RESULT = "merged"  # what the job calls the merged model


class _Evaluation(BaseRecipe[Evaluate]):
    """The block `evaluate` alone."""

    schema: ClassVar[type[BaseModel]] = Evaluate
    example = "suite: needle"

    def check(self, mistakes: Mistakes) -> None:
        check_evaluation(self.body, (), mistakes)


class MergeJob(Recipe):
    """A merge recipe with the later blocks."""

    def check_stated(self, value: RecipeValues, mistakes: Mistakes) -> None:
        super().check_stated(value, mistakes)
        check_recover(self.document, mistakes)
        if isinstance(value.get("evaluate"), dict):
            include(mistakes, lambda: _Evaluation(self.document.part("evaluate")))

    @property
    def recover(self) -> Document | None:
        """The training recipe of the recovery."""
        return recover_block(self.document) if RECOVER in self.document.value else None

    @property
    def evaluation(self) -> Evaluate | None:
        if self.body.evaluate is None:
            return None
        return _Evaluation(self.document.part("evaluate")).body


def check_later_blocks(recipe: str | Path) -> None:
    """Raise InputError, with the line, for a mistake in a merge recipe or its later blocks."""
    for key in sorted({"recover", "evaluate"} & MergeJob.read(recipe).document.value.keys()):
        progress.warn(f"`{key}:` is checked and not run by `regraft merge`; `regraft graft` does.")
