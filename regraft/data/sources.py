"""Documents from where text lies: text files, JSON lines, Parquet, the Hub, or made up here."""

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
    """A body of text. `place`: a file, folder or glob; a dataset's name; 'notes' for synthetic.

    field: key of a JSON line, or column. separator: parts the documents of a text file. split: of
    a Hub dataset. The rest: of synthetic text.
    """

    kind: Kind
    place: str
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
    """Hash of the text itself: a changed file is another text, a renamed one is not.

    Of a Hub dataset, the fingerprint that `datasets` gives it.
    """
    seen = xxhash.xxh3_128(json.dumps({**asdict(source), "place": ""}, sort_keys=True).encode())
    if source.kind == "hub":
        seen.update(str(_hub(source)._fingerprint).encode())
    elif source.kind == "synthetic":
        seen.update(source.place.encode())
    else:
        for path in files(source):
            seen.update(f"{path.stat().st_size}\n".encode())
            with open_file(path) as file:
                while block := file.read(1 << 22):
                    seen.update(block)
    return seen.hexdigest()


def documents(source: Text) -> Iterator[str]:
    """Every document that is not empty, in a fixed order.

    Raises InputError: no such file, a broken line (by number), a missing field, a package that is
    not installed.
    """
    read = {
        "text": _text, "jsonl": _jsonl, "parquet": _parquet, "hub": _rows, "synthetic": _notes,
    }[source.kind]  # fmt: skip
    for text in read(source):
        if text is not None and not isinstance(text, str):
            raise InputError(
                f"{source.place} has {type(text).__name__} in its field '{source.field}', not text."
            )
        if text and text.strip():
            yield text


def files(source: Text) -> list[Path]:
    """The files of a text, jsonl or parquet source, sorted by path. InputError for none."""
    place = Path(source.place).expanduser()
    if place.is_dir():
        endings = _ENDINGS[source.kind]
        paths = [path for path in place.rglob("*") if path.suffix in endings and path.is_file()]
        problem = f"no {' or '.join(endings)} files"
    elif place.is_file():
        return [place]
    else:
        paths = [Path(name) for name in glob.glob(str(place), recursive=True)]
        paths = [path for path in paths if path.is_file()]
        problem = "no such file or folder"
    if not paths:
        raise InputError(f"The {source.kind} source {source.place}: {problem}; correct its path.")
    return sorted(paths)


def input_paths(source: Text) -> list[Path]:
    """What a command must not write over when it reads this source: its file or folder, or the
    files of a pattern (the folder above `**`, since a pattern with it reaches everything below)."""
    if source.kind in ("hub", "synthetic"):
        return []
    place = Path(source.place).expanduser()
    if place.exists():
        return [place]
    if "**" in place.parts:
        return [Path(*place.parts[: place.parts.index("**")] or ["."])]
    return [Path(name) for name in glob.glob(str(place), recursive=True)]


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
            f"The dataset {source.place} has no column '{source.field}'; it has "
            f"{', '.join(dataset.column_names)}."
        )
    return (row[source.field] for row in dataset)


def _hub(source: Text) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError("A Hub dataset needs datasets: pip install datasets.") from None
    name, _, revision = source.place.partition("@")
    try:
        return datasets.load_dataset(name, split=source.split, revision=revision or None)
    except Exception as error:
        raise InputError(
            f"The dataset {source.place} (split {source.split}) cannot be loaded "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); check name, split "
            "and network."
        ) from None


def _notes(source: Text) -> Iterator[str]:
    """Prose with facts and questions about them, each document on a topic of its own."""
    from regraft.data.toy_language import Mix, training_row

    mix = Mix(source.prose, source.questions, source.shout)
    start = f"{source.seed} notes {source.words} {source.prose}"
    start += f" shout {source.shout}" if source.shout else ""
    for number in range(source.documents):
        rng = random.Random(f"{start} {number}")
        yield " ".join(training_row(rng, source.words, mix).words[1:])
