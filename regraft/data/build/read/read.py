"""The documents of a part, one at a time.

A record that cannot be read is left out and counted (`ReadReport`). Texts of more than 64 MB become
several documents, cut between lines, so that none is longer than memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from regraft.data.build.document import Document, Message
from regraft.data.build.read.hub import is_hub, name_of, open_hub_parquet, reading_hub
from regraft.data.build.read.lines import cut_texts, place_in, read_jsonl, read_texts
from regraft.data.build.read.pages import page_text, read_page, read_pdf
from regraft.data.build.read.parts import Part, Piece, is_parquet, root_of
from regraft.data.build.read.report import ReadReport
from regraft.data.build.read.repository import heading, in_order_of_imports, repository_files
from regraft.data.build.recipe import BOOKS3
from regraft.data.build.schema import Source
from regraft.data.chat.records import COLUMNS, read_conversation
from regraft.data.sources import open_parquet
from regraft.errors import InputError, reading
from regraft.input_files import JsonObject, open_file

_LONGEST = 64 << 20  # characters of a repository
_MARKS = ("meta", "metadata")  # fields of a record that may name the set it comes from


def read_part(source: Source, part: Part, report: ReadReport) -> Iterator[Document]:
    """The documents of a part, in the order of files and places in them.

    Raises InputError where a whole file is of another kind than the recipe says.
    """
    root = root_of(source)
    last = None if part.limit is None else report.records + part.limit
    for piece in part.pieces:
        if last is not None and report.records >= last:
            return
        if is_hub(piece.path):
            rows = _hub_rows(source, piece, report)
            yield from _records(source, piece, rows, report, last)
            continue
        path = Path(piece.path)
        name = _printable(path.relative_to(root) if path.is_relative_to(root) else path.name)
        if source.kind == "code":
            yield from _repository(source, path, name, report)
            continue
        if piece.start == 0:
            report.hashes[name] = file_hash(path)
        with reading(path):
            if source.kind == "text":
                texts = read_texts(path, name, source.encodings, source.separator, report)
                yield from _texts(source, texts, name, report)
            elif source.kind in ("html", "pdf"):
                yield from _texts(source, _pages(source, path, name, report), name, report)
            else:
                rows = _rows(source, piece, name, report)
                yield from _records(source, piece, rows, report, last)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _printable(path: str | Path) -> str:
    """A path as text. Of a name that is not in UTF-8, as from old archives, bytes are escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _texts(
    source: Source, texts: Iterable[tuple[int, str]], name: str, report: ReadReport
) -> Iterator[Document]:
    """Documents of the numbered texts of a file."""
    for number, text in texts:
        report.records += 1
        if text.strip():
            yield Document(text, name if number == 0 else f"{name}:{number}", source.name)
        else:
            report.empty += 1


def _pages(source: Source, path: Path, name: str, report: ReadReport) -> Iterator[tuple[int, str]]:
    """The numbered texts of a web page or PDF file; one that cannot be read counts as broken."""
    try:
        if source.kind == "html":
            yield 0, read_page(path, source.encodings)
        else:
            yield from cut_texts(read_pdf(path))
    except InputError as error:
        report.records += 1
        report.add_broken(f"{name}: {error}")


def _records(
    source: Source,
    piece: Piece,
    rows: Iterator[tuple[str, Any]],
    report: ReadReport,
    last: int | None,
) -> Iterator[Document]:
    """Documents of (place, record) pairs; the place is the id unless a field has one. last: where
    the count of records ends."""
    for where, row in rows:
        if last is not None and report.records >= last:
            return
        report.records += 1
        try:
            document = _document(source, where, row)
        except InputError as error:
            place = _place(source, piece, where) if report.has_room else where
            report.add_broken(place + str(error).removeprefix(where))
            continue
        if not source.books3 and _is_books3(row):
            report.books3 += 1
        elif document.text.strip():
            yield document
        else:
            report.empty += 1


def _place(source: Source, piece: Piece, where: str) -> str:
    """The place 'name:number' as text with a line or record number, from 1."""
    name, _, number = where.rpartition(":")
    if is_parquet(source, piece.path):
        return f"{name}, record {int(number) + 1}"
    return f"{name}, {place_in(piece.path, int(number))}"


def _document(source: Source, where: str, row: Any) -> Document:
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object.")
    name = where
    if source.id_field is not None:
        value = row.get(source.id_field)
        if not isinstance(value, str | int):
            raise InputError(f"{where} has no id in its field '{source.id_field}'.")
        name = str(value)
    if source.chat:
        messages = read_conversation(row, where, source.field).messages
        if any(set(message) != {"role", "content"} for message in messages):
            raise InputError(f"{where} has messages with more than a role and a content.")
        turns = tuple(Message(message["role"], message["content"]) for message in messages)
        joined = "\n\n".join(turn.content for turn in turns)
        return Document(joined, name, source.name, messages=turns)
    field = source.field or "text"
    text = row.get(field)
    if text is None and field in row:
        return Document("", name, source.name)
    if not isinstance(text, str):
        raise InputError(
            f"{where} has no text in its field '{field}'; it has {', '.join(sorted(row)) or 'none'}"
        )
    if source.format == "html":
        try:
            text = page_text(text)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return Document(text, name, source.name)


def _is_books3(row: JsonObject) -> bool:
    """Whether a record says that it is of Books3, as those of RedPajama and the Pile do."""
    marks = [row.get(key) for key in _MARKS]
    texts = [m if isinstance(m, str) else "" for m in marks]
    for mark in marks:
        if isinstance(mark, dict):
            texts += [value for value in mark.values() if isinstance(value, str)]
    return any(len(text) < 1000 and BOOKS3.search(text) for text in texts)


def _columns(source: Source) -> set[str]:
    own = {source.field or "text"} if not source.chat else {source.field or "", *COLUMNS}
    return {*own, source.id_field or "", *_MARKS}


def _rows(source: Source, piece: Piece, name: str, report: ReadReport) -> Iterator[tuple[str, Any]]:
    """(place, record) of the rows or lines of a piece."""
    if not is_parquet(source, piece.path):
        return read_jsonl(piece.path, name, piece.start, piece.stop, source.encodings, report)
    table = (open_hub_parquet if is_hub(piece.path) else open_parquet)(piece.path)
    names = table.schema_arrow.names
    if not source.chat and (source.field or "text") not in names:
        raise InputError(
            f"{name} has no column '{source.field or 'text'}'; it has {', '.join(sorted(names))}."
        )
    columns = [one for one in names if one in _columns(source)]
    batches = table.iter_batches(64, range(piece.start, piece.stop), columns=columns)
    records = chain.from_iterable(batch.to_pylist() for batch in batches)
    return (
        (f"{name}:{row}", one) for row, one in enumerate(islice(records, piece.rows), piece.row)
    )


def _hub_rows(source: Source, piece: Piece, report: ReadReport) -> Iterator[tuple[str, Any]]:
    """`_rows` of a file of the Hub. Raises InputError where the transfer fails."""
    with reading_hub(piece.path):
        yield from _rows(source, piece, name_of(piece.path), report)


def _repository(source: Source, folder: Path, name: str, report: ReadReport) -> Iterator[Document]:
    """A folder of code as one document, or several where it is longer than 64 MB."""
    report.records += 1
    files: list[tuple[str, str]] = []
    total, number = 0, 0

    def document() -> Document:
        order = [inner for inner, _ in files]
        if source.order == "imports":
            order = in_order_of_imports(files)
        texts = dict(files)
        text = "\n".join(heading(inner) + texts[inner] for inner in order)
        return Document(text, name if number == 0 else f"{name}:{number}", source.name)

    for inner in repository_files(folder):
        path, inner = folder / inner, _printable(inner)
        report.hashes[f"{name}/{inner}"] = file_hash(path)
        found = read_texts(path, f"{name}/{inner}", source.encodings, None, report)
        text = "".join(text for _, text in found)
        if not text.strip():
            continue
        if files and total + len(text) > _LONGEST:
            yield document()
            files, total, number = [], 0, number + 1
        files.append((inner, text))
        total += len(text)
    if files:
        yield document()
    elif number == 0:
        report.empty += 1
