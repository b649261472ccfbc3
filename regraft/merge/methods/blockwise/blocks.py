"""Tensors as streams of row blocks, which merge methods read.

A row is everything at one index of a tensor's first axis; a tensor with fewer than two axes is one
row. A block is a range of whole rows of every input and of the base, in float32 or float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

BLOCK = 2**18  # elements of a block: 1 MiB in float32, so that a few of them stay in cache

Block: TypeAlias = tuple[list[Tensor], Tensor | None]


class Blocks(Protocol):
    """The inputs as blocks: `blocks()` yields ([input blocks], base block) in the order of rows;
    `blocks(step)` reads and yields rows 0, step, 2 step, ... only, for a sample."""

    def __call__(self, step: int = 1) -> Iterator[Block]: ...


@dataclass(frozen=True)
class StoredBlocks:
    """`Blocks` of tensors in memory, or memory-mapped, of any dtype, converted block by block."""

    tensors: Sequence[Tensor]
    base: Tensor | None = None
    elements: int | None = BLOCK  # of a block, at least one row; None: the whole tensor
    dtype: torch.dtype = torch.float32

    def __call__(self, step: int = 1) -> Iterator[Block]:
        first = self.tensors[0] if self.tensors else self.base
        assert first is not None
        if first.ndim < 2:
            yield self._convert(slice(None))
            return
        rows = first.shape[0]
        height = max(1, rows)
        if self.elements is not None:
            height = max(1, self.elements // max(1, first[:1].numel()))
        for start in range(0, rows, height * step):
            yield self._convert(slice(start, min(rows, start + height * step), step))

    def _convert(self, rows: slice) -> Block:
        def part(tensor: Tensor) -> Tensor:
            return (tensor[rows] if tensor.ndim > 1 else tensor).to(self.dtype)

        return [part(t) for t in self.tensors], None if self.base is None else part(self.base)
