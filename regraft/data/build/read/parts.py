"""A source in parts of about 32 MB, which do not depend on the number of processes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from regraft.data.build.read.pages import check_package
from regraft.data.build.read.repository import repository_files
from regraft.data.build.schema import Source
from regraft.data.sources import files_of, hub_dataset, open_parquet
from regraft.errors import InputError, reading

PART_BYTES = 32 << 20
_MOST_FILES = 1000  # in a part
_HUB_ROWS = 10_000  # in a part


@dataclass(frozen=True)
class Piece:
    """Where a part reads: a file, a folder of code, or a dataset, from `start` to `stop`.

    start, stop: bytes of JSON lines, row groups of Parquet, rows of a dataset; else 0. row: of
    Parquet, the number of its first row.
    """

    path: str
    start: int = 0
    stop: int = 0
    row: int = 0


@dataclass(frozen=True)
class Part:
    """Some pieces of a source, read by one process. number: from 0, in the order of the output."""

    source: str
    number: int
    pieces: tuple[Piece, ...]

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
        return _list_dataset(source)
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
    parts = [
        Part(source.name, number, tuple(group)) for number, group in enumerate(_grouped(pieces))
    ]
    return Listing(parts, len(paths), sum(size for _, size, _ in state), state)


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


def _pieces(source: Source, path: Path) -> Iterator[tuple[Piece, int]]:
    """The pieces of a file, with their bytes."""
    size = path.stat().st_size
    if source.kind == "jsonl":
        for start in range(0, size, PART_BYTES):
            stop = min(start + PART_BYTES, size)
            yield Piece(str(path), start, stop), stop - start
    elif source.kind == "parquet":
        meta = open_parquet(path).metadata
        row = 0
        for group in range(meta.num_row_groups):
            details = meta.row_group(group)
            yield Piece(str(path), group, group + 1, row), details.total_byte_size
            row += details.num_rows
    else:
        yield Piece(str(path)), size


def _grouped(pieces: list[tuple[Piece, int]]) -> Iterator[list[Piece]]:
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


def _list_dataset(source: Source) -> Listing:
    dataset = hub_dataset(source.location, source.split)
    rows = len(dataset)
    parts = [
        Part(source.name, number, (Piece(source.location, start, min(start + _HUB_ROWS, rows)),))
        for number, start in enumerate(range(0, rows, _HUB_ROWS))
    ]
    size = sum(os.path.getsize(file["filename"]) for file in dataset.cache_files)
    return Listing(parts, len(dataset.cache_files), size, [(str(dataset._fingerprint), rows, 0)])
