"""`data: {built: FOLDER}`: the sources and mixes of a folder of `regraft data build`."""

from __future__ import annotations

from pathlib import Path

from regraft.data.build.record import DatasetRecord, read_dataset
from regraft.data.build.shards import FOLDER
from regraft.document import Document, RecipeValues
from regraft.errors import InputError


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


def built_sources(folder: str, record: DatasetRecord) -> list[RecipeValues]:
    """The sources of a built folder as a training recipe has them."""
    sources = []
    for name, source in record.sources.items():
        path = str(Path(folder).expanduser() / FOLDER / name)
        entry: RecipeValues = {"name": name, "parquet": path, "rows": source.rows}
        if source.chat:
            entry |= {"chat": True, "field": "messages"}
        sources.append(entry)
    return sources
