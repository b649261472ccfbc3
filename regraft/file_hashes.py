"""Hashes of files that a command reads, of whole files, so that any change changes the hash.

The hash of a large file is stored in the user's cache under its path, size and time of change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import xxhash

from regraft import cache
from regraft.errors import reading

_CACHED_ABOVE = 16 << 20  # bytes
_BLOCK = 1 << 22


def paths_content(paths: Iterable[str | Path]) -> str:
    """Hash of files, and of the files in folders."""
    entries: list[tuple[str, Path]] = []
    for path in map(Path, paths):
        inner = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        entries += [(str(file), file) for file in inner]
    return files_content(entries)


def files_content(files: Iterable[tuple[str, Path]]) -> str:
    """Hash of (name, path) pairs: names and bytes."""
    digest = hashlib.sha256()
    for name, path in sorted(files):
        digest.update(f"{name}\n{_file(path)}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def _file(path: Path) -> str:
    """XXH3 of a file's bytes."""
    with reading(path):
        state = path.stat()
        if state.st_size <= _CACHED_ABOVE:
            return xxhash.xxh3_128(path.read_bytes()).hexdigest()
        entry = cache.Entry(
            "content", str(path.resolve()), str(state.st_size), str(state.st_mtime_ns),
            str(state.st_ino),
        )  # fmt: skip
        if isinstance(value := entry.read(), str):
            return value
        digest = xxhash.xxh3_128()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    entry.write(digest.hexdigest())
    return digest.hexdigest()
