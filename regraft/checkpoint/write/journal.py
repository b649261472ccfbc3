"""The journal of a staging folder: which pieces of a job are finished. It also locks the folder.

The first line names the job, every other line a finished piece and facts about it:

    {"job": "5f2c..."}
    {"key": "tensor:model.norm.weight", "bytes": 8192, "xxh3": "91c0..."}

A line is appended after the bytes that it names are written. A torn last line is dropped.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from regraft import progress
from regraft.checkpoint.write.disk import is_open_as
from regraft.checkpoint.write.manifest import JOURNAL
from regraft.errors import InputError, writing
from regraft.input_files import JsonObject

_SYNC_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Recorded:
    """The content of a journal. whole_bytes: length of its complete lines."""

    job: str | None = None
    pieces: dict[str, JsonObject] = field(default_factory=dict)
    whole_bytes: int = 0


class Journal:
    """The open, locked journal of a staging folder, created where there is none.

    Raises InputError where another process has the lock.
    """

    def __init__(self, folder: Path, target: Path) -> None:
        self.path = folder / JOURNAL
        self._synced_at = 0.0
        self._fd: int | None = self._open_locked(folder, target)

    def read(self) -> Recorded:
        """The content, up to the first line that is not complete."""
        job, pieces, whole = None, {}, 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            if "key" not in entry:
                job = entry["job"]
            else:
                pieces[entry.pop("key")] = entry
        return Recorded(job, pieces, whole)

    def truncate(self, size: int) -> None:
        """Drop everything after `size` bytes."""
        assert self._fd is not None, "the journal is closed"
        os.ftruncate(self._fd, size)

    def append(self, entry: JsonObject) -> None:
        """Add a line; after this returns a killed process does not lose it.

        Lines are synced once a second, so a power cut costs the last pieces and no more; a sync of
        each line took a copy of 1 GB in 290 tensors from 0.53 s to 0.80 s.
        """
        assert self._fd is not None, "the journal is closed"
        with writing(self.path):
            line = json.dumps(entry).encode() + b"\n"
            while line:
                line = line[os.write(self._fd, line) :]
            if time.monotonic() - self._synced_at >= _SYNC_EVERY:
                os.fsync(self._fd)
                self._synced_at = time.monotonic()

    def close(self) -> None:
        """Close the file, which also releases the lock. May be called twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd is None

    def _open_locked(self, folder: Path, target: Path) -> int:
        while True:
            folder.mkdir(exist_ok=True)
            if not self.path.exists() and any(folder.iterdir()):
                raise InputError(
                    f"{folder} is where the output would be made, and it holds files that regraft "
                    "did not write; move them away."
                )
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:  # the other process has just published or removed the folder
                continue
            try:
                lock_file(fd, folder, target)
                if is_open_as(self.path, fd):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def lock_file(fd: int, folder: Path, target: Path) -> None:
    """Lock an open file of `folder`, where `target` is made; held until the file is closed.

    Raises InputError where another process has the lock.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"Another regraft process is writing {target}; wait for it or choose another "
            "output folder."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        progress.warn(
            f"The file system of {folder} has no locks: make sure that no other regraft "
            "process writes there."
        )
