"""`DatasetRecord`: data.json of a built folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from regraft.data.build.read.report import ReadReport
from regraft.data.build.statistics import Flow, Histogram, Statistics
from regraft.errors import InputError
from regraft.records import SCHEMA_VERSION, Plain, read_record

RECORD = "data.json"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A Parquet file of the output. path: relative to the folder."""

    path: str
    source: str
    documents: int
    tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """A source: where it came from, what was read, and what is left of it.

    revision: of a Hub dataset, or the hash of all files (each has its own in `report`, of at most
    1000). chat: whether all that was written are conversations. read: documents as they were read,
    out: as they were written. characters_before, characters, tokens: lengths of documents, as they
    were read and written. repeated_ids: documents whose id another one had; theirs has a '~2'.
    """

    kind: str
    location: str
    licence: str
    rows: Literal["whole", "packed", "joined"]
    chat: bool
    revision: str
    files: int
    bytes: int
    report: ReadReport
    read: Flow
    out: Flow
    characters_before: Histogram
    characters: Histogram
    tokens: Histogram
    repeated_ids: int = 0


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord:
    """The tokenizer that counted. digest: equal for tokenizers that give the same tokens."""

    name: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """data.json of a built folder.

    recipe: its text. steps: what each did, by label, in order; steps of the recipe's own are
    'all/...'. mixes: shares of rows by source, by name. In a dry run nothing but sources' files,
    bytes and licences is known, and `plan` states what would be done. warnings: sentences on what
    is probably not what was meant.
    """

    recipe: str
    sources: dict[str, SourceRecord]
    steps: list[Statistics]
    shards: list[ShardRecord]
    mixes: dict[str, dict[str, float]]
    tokenizer: TokenizerRecord
    arguments: dict[str, Plain]
    versions: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    plan: dict[str, Plain] | None = None
    kind: Literal["dataset"] = "dataset"
    schema_version: int = SCHEMA_VERSION


def read_dataset(folder: str | Path) -> DatasetRecord:
    """The record of a built folder, whose shards are all there.

    Raises InputError where it is no such folder, or a shard is missing or has another size.
    """
    folder = Path(folder).expanduser()
    path = folder / RECORD
    if not path.is_file():
        raise InputError(
            f"{folder} is not a folder of `regraft data build` (it has no {RECORD}); give one, or "
            "list its files under `sources`."
        )
    record = read_record(path, DatasetRecord, "build the data again")
    for shard in record.shards:
        file = folder / shard.path
        size = file.stat().st_size if file.is_file() else None
        if size != shard.bytes:
            what = (
                "is missing" if size is None else f"has {size:,} bytes instead of {shard.bytes:,}"
            )
            raise InputError(f"{file} {what}; copy the folder again, or build the data again.")
    return record


def total(flows: Iterable[Flow]) -> Flow:
    """The sum of several flows."""
    result = Flow()
    for flow in flows:
        result.include(flow)
    return result
