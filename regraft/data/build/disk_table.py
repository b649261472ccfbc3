"""Counts and values by key on disk, so that memory does not grow with the number of keys."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from regraft.errors import OutputError, os_error_sentence

_CACHE_KB = 65536


class DiskTable:
    """(key, value) pairs of bytes in a temporary SQLite file, removed at the end of the block.

    Several values may have one key. Raises OutputError where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        # a file that is thrown away after a crash needs no journal
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KB}"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute(
            "CREATE TABLE pairs (key BLOB, value BLOB, PRIMARY KEY (key, value)) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def values(self, key: bytes) -> list[bytes]:
        """The values of a key, sorted."""
        query = "SELECT value FROM pairs WHERE key = ? ORDER BY value"
        return [value for (value,) in self._database.execute(query, (key,))]

    def add(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Add pairs; those that are there stay once."""
        try:
            self._database.executemany("INSERT OR IGNORE INTO pairs VALUES (?, ?)", pairs)
        except sqlite3.OperationalError as error:
            raise _refused(error, self._path) from error

    def add_new(self, key: bytes) -> bool:
        """Add a key without a value; False where it is there already."""
        try:
            done = self._database.execute("INSERT OR IGNORE INTO pairs VALUES (?, x'')", (key,))
        except sqlite3.OperationalError as error:
            raise _refused(error, self._path) from error
        return done.rowcount == 1

    def __enter__(self) -> DiskTable:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._database.close()
        self._path.unlink(missing_ok=True)


def _refused(error: sqlite3.OperationalError, path: Path) -> OutputError:
    import errno

    full = "full" in str(error) or "disk I/O" in str(error)
    return OutputError(os_error_sentence(OSError(errno.ENOSPC if full else 0, str(error)), path))
