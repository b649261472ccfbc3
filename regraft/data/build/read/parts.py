"""A source in parts of about 32 MB, which do not depend on the number of processes."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from regraft.data.build.read.hub import HubFile, hub_split, open_hub_parquet
from regraft.data.build.read.pages import check_package
from regraft.data.build.read.repository import repository_files
from regraft.data.build.schema import Source
from regraft.data.sources import files_of, open_parquet
from regraft.errors import InputError, reading

PART_BYTES = 32 << 20
_MOST_FILES = 1000  # in a part
_CONNECTIONS = 16


@dataclass(frozen=True)
class Piece:
    """Where a part reads: a file (one of the Hub begins with hf://) or a folder of code.

    start, stop: bytes of JSON lines, row groups of Parquet; else 0. row, rows: of Parquet, the
    number of its first row, and how many it has.
    """

    path: str
    start: int = 0
    stop: int = 0
    row: int = 0
    rows: int = 0


@dataclass(frozen=True)
class Part:
    """Some pieces of a source, read by one process.

    number: from 0, in the order of the output. limit: most lines that are read of it.
    """

    source: str
    number: int
    pieces: tuple[Piece, ...]
    limit: int | None = None

    @property
    def key(self) -> str:
        """Names the part in the journal and in file names."""
        return f"{self.source}-{self.number:06d}"


@dataclass(frozen=True)
class Listing:
    """The parts of a source. files, bytes: of it on disk; state: changes when a file does."""

    parts: list[Part]
    files: int
    bytes: int
    state: list[tuple[str, int, int]]


def list_source(source: Source) -> Listing:
    """The parts of a source. Raises InputError where it is missing or has no files, or a package
    that reads it is missing."""
    for kind in (source.kind, source.format):
        if kind == "html" or kind == "pdf":
            check_package(kind)
    if source.kind == "hub":
        return _list_split(source)
    if source.kind == "code":
        pieces, paths = [], []
        for folder in folders(source):
            inner = [folder / name for name in repository_files(folder)]
            pieces.append((Piece(str(folder)), sum(path.stat().st_size for path in inner)))
            paths += inner
        if not paths:
            raise InputError(f"The source '{source.name}' has no files of code.")
    else:
        paths = files_of(source.kind, source.location)
        with reading(source.location):
            pieces = [piece for path in paths for piece in _pieces(source, path)]
    state = [(str(path), (now := path.stat()).st_size, now.st_mtime_ns) for path in paths]
    return Listing(_parts(source, pieces), len(paths), sum(size for _, size, _ in state), state)


def is_parquet(source: Source, path: str) -> bool:
    """Whether a file of a source has rows; those of JSON have lines."""
    return source.kind == "parquet" or (source.kind == "hub" and path.lower().endswith(".parquet"))


def folders(source: Source) -> list[Path]:
    """The folders of a source of code, sorted. Raises InputError where there are none."""
    location = Path(source.location).expanduser()
    found = [location] if location.is_dir() else map(Path, glob.glob(str(location)))
    result = sorted(path for path in found if path.is_dir())
    if not result:
        raise InputError(f"The source '{source.name}': {source.location} is no folder of code.")
    return result


def root_of(source: Source) -> Path:
    """The folder to which the names in ids are relative."""
    location = Path(source.location).expanduser()
    if location.is_dir():
        return location.parent if source.kind == "code" else location
    fixed: list[str] = []
    for part in location.parts[:-1]:
        if any(sign in part for sign in "*?["):
            break
        fixed.append(part)
    return Path(*fixed)


def _list_split(source: Source) -> Listing:
    split = hub_split(source.location, source.subset, source.split)

    def pieces(file: HubFile) -> list[tuple[Piece, int]]:
        if is_parquet(source, file.path):
            return list(_row_groups(file.path, open_hub_parquet(file.path)))
        return list(_lines(file.path, file.size))

    if source.limit is None:
        with ThreadPoolExecutor(_CONNECTIONS) as threads:  # each waits for a file's footer
            parts = _parts(source, chain.from_iterable(threads.map(pieces, split.files)))
    else:
        parts = _parts(source, chain.from_iterable(map(pieces, split.files)))
    used = {piece.path for part in parts for piece in part.pieces}
    size = sum(file.size for file in split.files if file.path in used)
    return Listing(parts, len(used), size, [(split.revision, 0, 0)])


def _pieces(source: Source, path: Path) -> Iterator[tuple[Piece, int]]:
    """The pieces of a file, with their bytes."""
    if source.kind == "jsonl":
        return _lines(str(path), path.stat().st_size)
    if source.kind == "parquet":
        return _row_groups(str(path), open_parquet(path))
    return iter([(Piece(str(path)), path.stat().st_size)])


def _lines(path: str, size: int) -> Iterator[tuple[Piece, int]]:
    for start in range(0, size, PART_BYTES):
        stop = min(start + PART_BYTES, size)
        yield Piece(path, start, stop), stop - start


def _row_groups(path: str, table: Any) -> Iterator[tuple[Piece, int]]:
    row = 0
    for group in range(table.metadata.num_row_groups):
        details = table.metadata.row_group(group)
        yield Piece(path, group, group + 1, row, details.num_rows), details.total_byte_size
        row += details.num_rows


def _parts(source: Source, pieces: Iterable[tuple[Piece, int]]) -> list[Part]:
    """The parts of pieces with their bytes; where the source has a limit, of the first of them."""
    limit = source.limit
    if limit is not None:
        pieces = iter(pieces)
        first = next(pieces, None)
        if first is not None and not is_parquet(source, first[0].path):
            # how many lines a piece has is not known before it is read
            return [Part(source.name, 0, tuple(one for one, _ in chain([first], pieces)), limit)]
        pieces = _first_rows(chain([first] if first else [], pieces), limit)
    return [
        Part(source.name, number, tuple(group)) for number, group in enumerate(_grouped(pieces))
    ]


def _first_rows(pieces: Iterable[tuple[Piece, int]], limit: int) -> Iterator[tuple[Piece, int]]:
    """The pieces with the first `limit` rows."""
    for piece, size in pieces:
        yield replace(piece, rows=min(piece.rows, limit)), size
        limit -= piece.rows
        if limit <= 0:
            return


def _grouped(pieces: Iterable[tuple[Piece, int]]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    total = 0
    for piece, size in pieces:
        if group and (total + size > PART_BYTES or len(group) == _MOST_FILES):
            yield group
            group, total = [], 0
        group.append(piece)
        total += size
    if group:
        yield group
