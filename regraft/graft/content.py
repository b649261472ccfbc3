"""Hashes of the inputs and outputs of stages: of whole files, so that any change changes the hash.

The hash of a large file is stored in the user's cache under its path, size and time of change. A
model from the Hub is identified by its commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import xxhash

from regraft import cache
from regraft.adapters.folder import CONFIG, DIFFERENCES, LINEAGE, RECORD, WEIGHTS
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import reading

_CACHED_ABOVE = 16 << 20  # bytes
_BLOCK = 1 << 22


def model_content(source: str) -> str:
    """Hash of a model's weights, config, tokenizer and the like. Raises CheckpointError."""
    with Checkpoint.open(source) as checkpoint:
        if checkpoint.revision is not None:
            return f"{checkpoint.name}@{checkpoint.revision}"
        return files_content(model_files(checkpoint).items())


def model_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Name -> path of a model's weights, config, tokenizer and the like."""
    names = ["config.json", *checkpoint.shards, *checkpoint.other_files()]
    return {name: path for name in names if (path := checkpoint.file(name)) is not None}


def adapter_content(source: str) -> str:
    """Hash of an adapter's factors, differences, context and lineage. Raises CheckpointError."""
    folder = Adapter.open(source).folder
    names = (CONFIG, WEIGHTS, RECORD, LINEAGE, DIFFERENCES)
    return files_content((name, folder / name) for name in names if (folder / name).is_file())


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
