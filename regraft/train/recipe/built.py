"""`data: {built: FOLDER}`: the sources and mixes of a folder of `regraft data build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import progress
from regraft.data.build.record import DatasetRecord, read_dataset
from regraft.data.build.shards import FOLDER
from regraft.data.tokens import tokenizer_digest
from regraft.document import Document
from regraft.errors import InputError
from regraft.units import format_tokens

if TYPE_CHECKING:
    from regraft.train.recipe.recipe import Recipe


def with_built(document: Document) -> Document:
    """The recipe with the sources and mixes of its built folder added to its own.

    Raises InputError where the folder has no manifest, or not the files that this names.
    """
    data = document.value.get("data") if isinstance(document.value, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("built"), str):
        return document
    own, mixes = data.get("sources", []), data.get("mixes", {})
    if not isinstance(own, list) or not isinstance(mixes, dict):
        return document  # the schema says what is wrong
    try:
        record = read_dataset(data["built"])
    except InputError as error:
        raise document.error(("data", "built"), str(error)) from None
    added = {
        "sources": [*own, *built_sources(data["built"], record)],
        "mixes": {**record.mixes, **mixes},
    }
    return document.replaced(data={**data, **added})


def built_sources(folder: str, record: DatasetRecord) -> list[dict[str, Any]]:
    """The sources of a built folder as a training recipe has them."""
    sources = []
    for name, source in record.sources.items():
        path = str(Path(folder).expanduser() / FOLDER / name)
        entry: dict[str, Any] = {"name": name, "parquet": path, "rows": source.rows}
        if source.chat:
            entry |= {"chat": True, "field": "messages"}
        sources.append(entry)
    return sources


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
