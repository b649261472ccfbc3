"""The list of files that regraft wrote into an output folder: `--overwrite` removes these only.

Every published folder holds `.regraft-files.json`:

    {"schema_version": 1,
     "files": {"README.md": {"bytes": 2012, "xxh3": "91c0..."},
               "model.safetensors": {"bytes": 16060556376}}}

Files of up to 16 MiB have a hash, larger ones only their size: hashing a model again takes minutes.
A file that is not listed, or that has changed since, is foreign: it belongs to the user.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from regraft.write import write_json

MANIFEST = ".regraft-files.json"
JOURNAL = ".regraft-journal.jsonl"
_SCHEMA_VERSION = 1
_LARGEST_HASHED = 16 << 20  # bytes


@dataclass(frozen=True)
class FileEntry:
    """One file as regraft wrote it. xxh3: 128 bits, hexadecimal; None for a large file."""

    bytes: int
    xxh3: str | None = None

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """The entry of a file as it is now."""
        size = path.stat().st_size
        if size > _LARGEST_HASHED:
            return cls(size)
        return cls(size, xxhash.xxh3_128(path.read_bytes()).hexdigest())


def write_manifest(folder: Path) -> None:
    """Write the list of all files of `folder`, except the manifest and the journal at its top."""
    entries = {
        name: {key: value for key, value in asdict(FileEntry.of(path)).items() if value is not None}
        for name, path in sorted(_files(folder))
    }
    content = {"schema_version": _SCHEMA_VERSION, "files": entries}
    write_json(folder / MANIFEST, content)


def read_manifest(folder: Path) -> dict[str, FileEntry] | None:
    """Name -> entry; None where the folder has no manifest, or one that cannot be understood."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content["schema_version"] != _SCHEMA_VERSION:
            return None
        entries = {name: FileEntry(**entry) for name, entry in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return entries


def foreign_files(folder: Path) -> list[str]:
    """Sorted names of the files that are not as regraft wrote them; all, without a manifest."""
    entries = read_manifest(folder) or {}
    return sorted(name for name, path in _files(folder) if not _is_unchanged(path, entries, name))


def remove_output(folder: Path) -> list[str]:
    """Remove the files that regraft wrote, then empty folders. Returns the files that stay.

    The manifest goes last, so that an interrupted removal can be repeated.
    """
    entries = read_manifest(folder) or {}
    remaining = []
    for name, path in list(_files(folder)):
        if _is_unchanged(path, entries, name):
            path.unlink()
        else:
            remaining.append(name)
    for subfolder, _, _ in os.walk(folder, topdown=False):
        if Path(subfolder) != folder:
            with suppress(OSError):  # not empty
                os.rmdir(subfolder)
    if not remaining:
        for name in (JOURNAL, MANIFEST):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    return sorted(remaining)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(relative name, path) of everything but folders; a symbolic link counts as a file."""
    for parent, subfolders, names in os.walk(folder):
        links = [name for name in subfolders if (Path(parent) / name).is_symlink()]
        for name in (*names, *links):
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if relative not in (MANIFEST, JOURNAL):
                yield relative, path


def _is_unchanged(path: Path, entries: dict[str, FileEntry], name: str) -> bool:
    entry = entries.get(name)
    if entry is None or path.is_symlink() or not path.is_file():
        return False
    if path.stat().st_size != entry.bytes:
        return False
    return entry.xxh3 is None or FileEntry.of(path).xxh3 == entry.xxh3
