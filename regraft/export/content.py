"""The contents of a GGUF file: its tensors, one at a time, and its metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from regraft.checkpoint.write.shard_plan import PlannedTensor

DTYPES = {"float16": torch.float16, "float32": torch.float32}
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of the file. blocks: its rows in float32, in order, a block at a time."""

    planned: PlannedTensor
    source: str
    blocks: Callable[[], Iterator[torch.Tensor]]


@dataclass(frozen=True)
class Content:
    """The tensors of a file in order. describe: adds the metadata to a `gguf.GGUFWriter`."""

    tensors: list[OutputTensor]
    describe: Callable[[Any], None]


def block_rows(columns: int) -> int:
    """The number of float32 rows in a block."""
    return max(1, _BLOCK_BYTES // (4 * max(1, columns)))
