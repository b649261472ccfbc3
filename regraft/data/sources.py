"""Documents of a body of text: text files, JSON lines, Parquet, a Hub dataset, or synthetic
text."""

from __future__ import annotations

import glob
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from regraft.errors import InputError
from regraft.input_files import open_file, parse_json, read_lines, read_text

Kind = Literal["text", "jsonl", "parquet", "hub", "synthetic"]
_ENDINGS = {"text": (".txt", ".md"), "jsonl": (".jsonl", ".json"), "parquet": (".parquet",)}


@dataclass(frozen=True)
class Text:
    """A body of text.

    location: a file, folder or glob; a dataset's name; 'notes' for synthetic text. field: key of a
    JSON line, or column. separator: between the documents of a text file; None: a file is one
    document. split: of a Hub dataset. The other fields are of synthetic text: number and words of
    documents, and the shares in `toy_language.Mix`.
    """

    kind: Kind
    location: str
    field: str = "text"
    separator: str | None = None
    split: str = "train"
    documents: int = 1000
    words: int = 1024
    prose: float = 0.45
    questions: float = 0.65
    shout: float = 0.0
    seed: int = 0


def digest(source: Text) -> str:
    """Hash of the settings and of the text itself, not of the names of its files.

    A Hub dataset counts by the fingerprint that `datasets` gives it.
    """
    settings = {**asdict(source), "location": ""}
    result = xxhash.xxh3_128(json.dumps(settings, sort_keys=True).encode())
    if source.kind == "hub":
        result.update(str(_hub(source)._fingerprint).encode())
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
                f"{source.location} has {type(text).__name__} in its field '{source.field}', not "
                "text."
            )
        if text and text.strip():
            yield text


def files(source: Text) -> list[Path]:
    """The files of a text, jsonl or parquet source, sorted. Raises InputError where there are
    none."""
    location = Path(source.location).expanduser()
    if location.is_dir():
        endings = _ENDINGS[source.kind]
        paths = [path for path in location.rglob("*") if path.suffix in endings and path.is_file()]
        problem = f"no {' or '.join(endings)} files"
    elif location.is_file():
        return [location]
    else:
        paths = [Path(name) for name in glob.glob(str(location), recursive=True)]
        paths = [path for path in paths if path.is_file()]
        problem = "no such file or folder"
    if not paths:
        raise InputError(
            f"The {source.kind} source {source.location}: {problem}; correct its path."
        )
    return sorted(paths)


def input_paths(source: Text) -> list[Path]:
    """The paths that a command which reads this source must not overwrite: the file or folder, or
    all files of a pattern; of one with `**` the folder above, because it matches at any depth."""
    if source.kind in ("hub", "synthetic"):
        return []
    location = Path(source.location).expanduser()
    if location.exists():
        return [location]
    if "**" in location.parts:
        return [Path(*location.parts[: location.parts.index("**")] or ["."])]
    return [Path(name) for name in glob.glob(str(location), recursive=True)]


def _text(source: Text) -> Iterator[str]:
    for path in files(source):
        content = read_text(path)
        yield from content.split(source.separator) if source.separator else [content]


def _jsonl(source: Text) -> Iterator[str]:
    for path in files(source):
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                yield _field(line, source, f"{path}, line {number}")


def _field(line: str, source: Text, where: str) -> str:
    row = parse_json(line, where, remedy="correct or remove it")
    text = row.get(source.field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        known = f"; it has {', '.join(sorted(row))}" if isinstance(row, dict) else ""
        raise InputError(f"{where} has no text in its field '{source.field}'{known}.")
    return text


def _parquet(source: Text) -> Iterator[str]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install pyarrow.") from None
    for path in files(source):
        try:
            table = parquet.ParquetFile(path)
        except ArrowInvalid as error:
            raise InputError(f"{path} is not a Parquet file ({error}).") from None
        names = table.schema_arrow.names
        if source.field not in names:
            raise InputError(
                f"{path} has no column '{source.field}'; it has {', '.join(sorted(names))}."
            )
        for batch in table.iter_batches(columns=[source.field]):
            yield from batch.column(0).to_pylist()


def _rows(source: Text) -> Iterator[str]:
    dataset = _hub(source)
    if source.field not in dataset.column_names:
        raise InputError(
            f"The dataset {source.location} has no column '{source.field}'; it has "
            f"{', '.join(dataset.column_names)}."
        )
    return (row[source.field] for row in dataset)


def _hub(source: Text) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError("A Hub dataset needs datasets: pip install datasets.") from None
    name, _, revision = source.location.partition("@")
    try:
        return datasets.load_dataset(name, split=source.split, revision=revision or None)
    except Exception as error:  # of any library that reads the dataset's files
        raise InputError(
            f"The dataset {source.location} (split {source.split}) cannot be loaded "
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
