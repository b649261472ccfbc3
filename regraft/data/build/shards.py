"""The output's Parquet files: the documents of each source in files of a given size.

data/books/00000.parquet    text, tokens, source, id, scores, metadata, messages
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TypedDict

from regraft.data.build.document import Document
from regraft.data.build.read.read import file_hash
from regraft.data.build.record import ShardRecord
from regraft.data.build.statistics import Flow, Histogram
from regraft.errors import InputError, writing

FOLDER = "data"
_GROUP_CHARACTERS = 8 << 20  # of text in a row group
_GROUP_ROWS = 1000


@dataclass
class Written:
    """What was written of a source. conversations: documents with messages."""

    out: Flow = field(default_factory=Flow)
    characters: Histogram = field(default_factory=Histogram)
    tokens: Histogram = field(default_factory=Histogram)
    conversations: int = 0


class Shards:
    """Writes documents, whose tokens are known, into `folder`. limit: characters of text in a file.

    As a context manager it closes the open files. records: of the finished files, sorted by path
    after the block.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._open: dict[str, _Shard] = {}
        self._numbers: dict[str, int] = {}
        self.written: dict[str, Written] = {}
        self.records: list[ShardRecord] = []

    def add(self, document: Document) -> None:
        """Write a document. Raises OutputError naming the file."""
        source = document.source
        shard = self._open.get(source)
        if shard is not None and shard.flow.characters + len(document.text) > self._limit:
            self._finish(source)
            shard = None
        if shard is None:
            number = self._numbers.get(source, 0)
            self._numbers[source] = number + 1
            path = f"{FOLDER}/{source}/{number:05d}.parquet"
            shard = self._open[source] = _Shard(self._folder / path, path)
        shard.add(document)
        written = self.written.setdefault(source, Written())
        written.out.add(document)
        written.characters.add(len(document.text))
        written.tokens.add(document.tokens or 0)
        written.conversations += document.messages is not None

    def __enter__(self) -> Shards:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _: BaseException | None,
        __: TracebackType | None,
    ) -> None:
        for source in list(self._open):
            if kind is None:
                self._finish(source)
            else:
                self._open[source].abandon()
        self.records.sort(key=lambda record: record.path)

    def _finish(self, source: str) -> None:
        shard = self._open.pop(source)
        shard.close()
        path = self._folder / shard.name
        self.records.append(
            ShardRecord(
                path=shard.name, source=source, documents=shard.flow.documents,
                tokens=shard.flow.tokens, bytes=path.stat().st_size, sha256=file_hash(path),
            )
        )  # fmt: skip


class _Shard:
    """One open file. name: its path relative to the output."""

    def __init__(self, path: Path, name: str) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise InputError("regraft data build needs pyarrow: pip install pyarrow.") from None
        self.path, self.name, self.flow = path, name, Flow()
        pair = [("name", pyarrow.string()), ("value", pyarrow.float64())]
        text_pair = [("name", pyarrow.string()), ("value", pyarrow.string())]
        turn = [("role", pyarrow.string()), ("content", pyarrow.string())]
        self._schema = pyarrow.schema(
            [("text", pyarrow.string()), ("tokens", pyarrow.int64()), ("source", pyarrow.string()),
             ("id", pyarrow.string()), ("scores", pyarrow.list_(pyarrow.struct(pair))),
             ("metadata", pyarrow.list_(pyarrow.struct(text_pair))),
             ("messages", pyarrow.list_(pyarrow.struct(turn)))]
        )  # fmt: skip
        self._rows: list[_Row] = []
        self._characters = 0
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("wb")
            self._writer = parquet.ParquetWriter(self._file, self._schema, compression="zstd")

    def add(self, document: Document) -> None:
        self.flow.add(document)
        self._characters += len(document.text)
        self._rows.append({
            "text": document.text, "tokens": document.tokens, "source": document.source,
            "id": document.id, "scores": _pairs(document.scores),
            "metadata": _pairs(document.metadata),
            "messages": None if document.messages is None else [
                {"role": turn.role, "content": turn.content} for turn in document.messages],
        })  # fmt: skip
        if self._characters >= _GROUP_CHARACTERS or len(self._rows) == _GROUP_ROWS:
            self._write_rows()

    def close(self) -> None:
        if self._rows:
            self._write_rows()
        with writing(self.path):
            self._writer.close()
            self._file.close()

    def abandon(self) -> None:
        """Close the file of a build that failed; what is in it is written again."""
        self._writer.is_open = False  # else pyarrow closes it when it is collected
        with suppress(OSError):
            self._file.close()

    def _write_rows(self) -> None:
        import pyarrow

        with writing(self.path):
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._characters = [], 0


class _Row(TypedDict):
    """A row of a shard, as pyarrow takes it; scores and metadata are lists of names and values."""

    text: str
    tokens: int | None
    source: str
    id: str
    scores: list[dict[str, object]]
    metadata: list[dict[str, object]]
    messages: list[dict[str, str]] | None


def _pairs(values: Mapping[str, object]) -> list[dict[str, object]]:
    return [{"name": name, "value": value} for name, value in sorted(values.items())]
