"""Documents of a body of text: text files, JSON lines, Parquet, a Hub dataset, or synthetic
text; and the records of those that have records, for conversations."""

from __future__ import annotations

import glob
import json
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from regraft.errors import InputError
from regraft.input_files import JsonObject, open_file, parse_json, read_lines, read_text

Kind = Literal["text", "jsonl", "parquet", "hub", "synthetic"]
_ENDINGS = {
    "text": (".txt", ".md"), "jsonl": (".jsonl", ".json"), "parquet": (".parquet",),
    "html": (".html", ".htm", ".xhtml"), "pdf": (".pdf",),
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A body of text.

    location: a file, folder or glob; a dataset's name; 'notes' or 'chats' for synthetic text.
    field: key of a JSON line, or column; None: 'text', or the usual ones of conversations. chat:
    records are conversations; loss_on: what of them is learned. separator: between the documents
    of a text file; None: a file is one document. split: of a Hub dataset. The other fields are of
    synthetic text: number and words of documents, and the shares in `toy_language.Mix`.
    """

    kind: Kind
    location: str
    field: str | None = None
    chat: bool = False
    loss_on: Literal["assistant", "all", "last"] = "assistant"
    separator: str | None = None
    split: str = "train"
    documents: int = 1000
    words: int = 1024
    prose: float = 0.45
    questions: float = 0.65
    shout: float = 0.0
    seed: int = 0

    @property
    def column(self) -> str:
        """The field that has a document's text."""
        return self.field or "text"


def digest(source: Text) -> str:
    """Hash of the settings and of the text itself, not of the names of its files.

    A Hub dataset counts by the fingerprint that `datasets` gives it.
    """
    settings = {**asdict(source), "location": ""}
    result = xxhash.xxh3_128(json.dumps(settings, sort_keys=True).encode())
    if source.kind == "hub":
        result.update(str(hub_dataset(source.location, source.split)._fingerprint).encode())
    elif source.kind == "synthetic":
        result.update(source.location.encode())
    else:
        for path in files(source):
            result.update(f"{path.stat().st_size}\n".encode())
            with open_file(path) as file:
                while block := file.read(1 << 22):
                    result.update(block)
    return result.hexdigest()


def documents(source: Text) -> Iterator[str]:
    """Every document that is not empty, in a fixed order.

    Raises InputError for a missing file, a broken line (with its number), a missing field, and a
    package that is not installed.
    """
    read = {
        "text": _text, "jsonl": _jsonl, "parquet": _parquet, "hub": _rows, "synthetic": _notes,
    }[source.kind]  # fmt: skip
    for text in read(source):
        if text is not None and not isinstance(text, str):
            raise InputError(
                f"{source.location} has {type(text).__name__} in its field '{source.column}', "
                "not text."
            )
        if text and text.strip():
            yield text


def records(source: Text, columns: Sequence[str]) -> Iterator[tuple[str, JsonObject]]:
    """(place, record) of every record of a source that is not text, in a fixed order.

    place: the file and line, or the number of the record. columns: those of Parquet files and Hub
    datasets that are read. Raises InputError as `documents`.
    """
    if source.kind == "jsonl":
        for where, row in _lines(source):
            if not isinstance(row, dict):
                raise InputError(f"{where} is not a JSON object; correct or remove it.")
            yield where, row
    elif source.kind == "parquet":
        for path in files(source):
            table = open_parquet(path)
            names = [name for name in table.schema_arrow.names if name in columns]
            number = 0
            for batch in table.iter_batches(columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, record {number}", row
    elif source.kind == "synthetic":
        for number, messages in enumerate(_chats(source), 1):
            yield f"conversation {number}", {"messages": messages}
    else:
        dataset = hub_dataset(source.location, source.split)
        dataset = dataset.select_columns([n for n in dataset.column_names if n in columns])
        for number, row in enumerate(dataset, 1):
            yield f"{source.location}, record {number}", row


def files(source: Text) -> list[Path]:
    """The files of a text, jsonl or parquet source, sorted. Raises InputError where there are
    none."""
    return files_of(source.kind, source.location)


def files_of(kind: str, location: str) -> list[Path]:
    """The files of a location, sorted: a file, all with the kind's endings in a folder, or those of
    a pattern. kind: text, jsonl, parquet, html or pdf. Raises InputError where there are none."""
    path = Path(location).expanduser()
    if path.is_dir():
        endings = _ENDINGS[kind]
        paths = [one for one in path.rglob("*") if one.suffix.lower() in endings and one.is_file()]
        problem = f"no {' or '.join(endings)} files"
    elif path.is_file():
        return [path]
    else:
        paths = [Path(name) for name in glob.glob(str(path), recursive=True)]
        paths = [one for one in paths if one.is_file()]
        problem = "no such file or folder"
    if not paths:
        raise InputError(f"The {kind} source {location}: {problem}; correct its path.")
    return sorted(paths)


def input_paths(source: Text) -> list[Path]:
    """The paths that a command which reads this source must not overwrite."""
    return [] if source.kind in ("hub", "synthetic") else paths_of(source.location)


def paths_of(location: str) -> list[Path]:
    """The file or folder at a location, or all files of a pattern; of one with `**` the folder
    above, because it matches at any depth."""
    path = Path(location).expanduser()
    if path.exists():
        return [path]
    if "**" in path.parts:
        return [Path(*path.parts[: path.parts.index("**")] or ["."])]
    return [Path(name) for name in glob.glob(str(path), recursive=True)]


def _text(source: Text) -> Iterator[str]:
    for path in files(source):
        content = read_text(path)
        yield from content.split(source.separator) if source.separator else [content]


def _jsonl(source: Text) -> Iterator[str]:
    for where, row in _lines(source):
        text = row.get(source.column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            known = f"; it has {', '.join(sorted(row))}" if isinstance(row, dict) else ""
            raise InputError(
                f"{where} has no text in its field '{source.column}'{known}"
                f"{_chat_hint(row if isinstance(row, dict) else ())}."
            )
        yield text


def _lines(source: Text) -> Iterator[tuple[str, Any]]:
    """(place, value) of every line that is not empty."""
    for path in files(source):
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, parse_json(line, where, remedy="correct or remove it")


def _chat_hint(names: Collection[str]) -> str:
    """The end of a message on records without text that are conversations."""
    chat = next((name for name in ("messages", "conversations") if name in names), None)
    return f"; to train on its {chat}, say chat: true" if chat else ""


def _parquet(source: Text) -> Iterator[str]:
    for path in files(source):
        table = open_parquet(path)
        names = table.schema_arrow.names
        if source.column not in names:
            raise InputError(
                f"{path} has no column '{source.column}'; it has {', '.join(sorted(names))}"
                f"{_chat_hint(names)}."
            )
        for batch in table.iter_batches(columns=[source.column]):
            yield from batch.column(0).to_pylist()


def open_parquet(path: str | Path, file: Any = None) -> Any:
    """A `pyarrow.parquet.ParquetFile` of a path, or of an open file that is slow to read from.

    Raises InputError for a file that is none.
    """
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install pyarrow.") from None
    try:
        return parquet.ParquetFile(file or path, pre_buffer=file is not None)
    except ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file ({error}).") from None


def _rows(source: Text) -> Iterator[str]:
    dataset = hub_dataset(source.location, source.split)
    if source.column not in dataset.column_names:
        raise InputError(
            f"The dataset {source.location} has no column '{source.column}'; it has "
            f"{', '.join(dataset.column_names)}{_chat_hint(dataset.column_names)}."
        )
    return (row[source.column] for row in dataset)


def hub_dataset(location: str, split: str) -> Any:
    """A split of the dataset org/name[@revision], from the cache or the Hub.

    Raises InputError where it cannot be loaded.
    """
    try:
        import datasets
    except ImportError:
        raise InputError("A Hub dataset needs datasets: pip install datasets.") from None
    name, _, revision = location.partition("@")
    try:
        return datasets.load_dataset(name, split=split, revision=revision or None)
    except Exception as error:  # of any library that reads the dataset's files
        raise InputError(
            f"The dataset {location} (split {split}) cannot be loaded "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); check name, split "
            "and network."
        ) from error


def _notes(source: Text) -> Iterator[str]:
    """Prose with facts and questions about them, each document on a topic of its own."""
    from regraft.data.toy_language import Mix, training_row

    mix = Mix(source.prose, source.questions, source.shout)
    start = f"{source.seed} notes {source.words} {source.prose}"
    start += f" shout {source.shout}" if source.shout else ""
    for number in range(source.documents):
        rng = random.Random(f"{start} {number}")
        yield " ".join(training_row(rng, source.words, mix).words[1:])


def _chats(source: Text) -> Iterator[list[dict[str, str]]]:
    """Conversations in which facts are told and asked for."""
    from regraft.data.toy_chat import conversation
    from regraft.data.toy_language import Mix

    mix = Mix(source.prose, source.questions)
    for number in range(source.documents):
        rng = random.Random(f"{source.seed} chats {source.words} {source.prose} {number}")
        yield conversation(rng, source.words, mix)
