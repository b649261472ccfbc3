"""Writing at fixed offsets of preallocated files, in pieces that stay in the processor's cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from regraft import progress
from regraft.errors import OutputError
from regraft.units import format_bytes

CHUNK = 1 << 18  # stays in the cache between hashing and writing


def need_space(folder: Path, sizes: dict[str, int], *, at_most: bool = False) -> None:
    """Raise OutputError unless the disk has room for files of these sizes (bytes).

    at_most: the sizes are upper bounds, so where they do not fit there is only a warning.
    """
    needed = 0
    for name, size in sizes.items():
        path = folder / name
        needed += max(0, size - (path.stat().st_blocks * 512 if path.exists() else 0))
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if needed <= free:
        return
    room = f"{format_bytes(free)} are free on the disk of {folder}"
    if at_most:
        progress.warn(
            f"the output and temporary files may need up to {format_bytes(needed)}, and {room}; "
            "make room or choose another disk"
        )
        return
    raise OutputError(
        f"The output needs {format_bytes(needed)}, and {room}; make room or choose another disk."
    )


def preallocated(path: Path, head: bytes, size: int) -> int:
    """A descriptor of a file of `size` bytes that begins with `head`, its space on disk reserved.

    A file that already has this header and size keeps its bytes.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if os.fstat(fd).st_size != size or os.pread(fd, len(head), 0) != head:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        write_at(fd, memoryview(head), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def chunks(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The tensor's bytes, cut into pieces that stay in the cache between hashing and writing."""
    if tensor.numel() == 0:
        return
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    data = flat.numpy().data
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


def write_at(fd: int, data: memoryview, at: int) -> None:
    """Write all of `data` at the offset `at`, whatever the file's position is."""
    while data:
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count


def is_open_as(path: Path, fd: int) -> bool:
    """Whether `fd` is the file that `path` names now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Have the disk store what the file or folder holds (fsync)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
