"""The lengths of a built folder's documents, beside the rows of a recipe's stages."""

from __future__ import annotations

from typing import Any

from regraft import progress
from regraft.data.build.record import read_dataset
from regraft.data.tokens import tokenizer_digest
from regraft.train.recipe.recipe import Recipe
from regraft.units import format_tokens


def check_lengths(recipe: Recipe, tokenizer: Any) -> None:
    """Compare a built folder with the model's tokenizer and the recipe's stages.

    With another tokenizer the lengths of its documents are others, which is a warning. With the
    same one, raises InputError for a stage whose rows none of a source's whole documents fills by
    half, before anything is tokenised.
    """
    folder = recipe.body.data.built
    if folder is None:
        return
    record = read_dataset(folder)
    if record.tokenizer.digest != tokenizer_digest(tokenizer):
        progress.warn(
            f"The lengths in {folder} were counted by another tokenizer ({record.tokenizer.name}); "
            "build it with the model's own to have exact ones."
        )
        return
    for i, stage in enumerate(recipe.body.stages):
        window = recipe.window(stage)
        for name in recipe.mix(stage):
            source = record.sources.get(name)
            if source is None or source.rows != "whole" or source.chat:
                continue
            longest = int(source.tokens.greatest or 0)
            if 2 * longest < window:
                raise recipe.error(
                    ("stages", i),
                    f"the longest document of '{name}' in {folder} has {longest:,} tokens, less "
                    f"than half a row of {format_tokens(window)}; give a shorter stage, or build "
                    "longer documents.",
                )
