"""A safetensors file, read with pread into new memory, whole tensors or parts of them.

A memory map would be cheaper, but it ends the process (SIGBUS) where another one truncates the
file, and a change to a tensor would reach every other reader.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regraft.checkpoint.read.header import TensorInfo, local_head, parse_header
from regraft.errors import CheckpointError
from regraft.input_files import open_file, unreadable


class FileReader:
    """The bytes of an open file by position; several threads may read at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_file(path, CheckpointError)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def fill(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes from `offset` on. Raises CheckpointError where the file
        ends before."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._file.fileno(), [buffer[done:]], offset + done)
            except OSError as error:
                raise unreadable(self.path, error, CheckpointError) from error
            if count == 0:
                raise CheckpointError(
                    f"{self.path} became shorter while it was read; let nothing else write to it."
                )
            done += count

    def elements(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor."""
        if stop <= start:
            return torch.empty(0, dtype=info.dtype)
        size = info.dtype.itemsize
        # large arrays of numpy get huge pages, which cost fewer page faults
        data = np.empty((stop - start) * size, np.uint8)
        self.fill(data.data, info.offset + start * size)
        return torch.from_numpy(data).view(info.dtype)


class TensorFile:
    """The tensors of one safetensors file. A context manager; the file closes with the object, too.

    tensors: by name, in file order; metadata: the `__metadata__` of the header.
    """

    def __init__(self, path: Path, remedy: str = "download it again") -> None:
        """Raises CheckpointError, ending in `remedy`, unless this is a whole safetensors file."""
        head, size = local_head(path)
        infos, self.metadata = parse_header(
            path.name, head, size, where=str(path.parent), remedy=remedy
        )
        self.tensors = {info.name: info for info in infos}
        self._reader = FileReader(path)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape; nothing is read."""
        return self.tensors[name].shape

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored."""
        info = self.tensors[name]
        return self._reader.elements(info, 0, prod(info.shape)).view(info.shape)
