"""Sums over a stream of blocks whose bits do not depend on the blocks' size.

A row is summed in float64 in an order that depends on its length only; the rows' sums are added
exactly (`math.fsum`), so block size and number of threads do not change the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def as_rows(block: Tensor) -> Tensor:
    """The block as (rows, elements of a row); fewer than two axes make one row."""
    return block.reshape(block.shape[0], -1) if block.ndim > 1 else block.reshape(1, -1)


def rows_and_columns(shape: Sequence[int]) -> tuple[int, int]:
    """The shape that `as_rows` gives the whole tensor."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def first_row(block: Tensor, offset: int) -> int:
    """The row of the tensor at which the block begins whose first element has this flat offset."""
    return offset // max(1, block[0].numel()) if block.ndim > 1 else 0


def row_sums(values: Tensor) -> list[float]:
    """(rows, n) -> each row's sum. Python numbers, because a small tensor that outlives its block
    would pin the free megabyte around it, so that the heap grows with the stream."""
    return list(_row_sums(values.double()).tolist())


def _row_sums(values: Tensor) -> Tensor:
    """(rows, n) float64 -> (rows,)."""
    if values.shape[0] == 1:  # torch would split a sum with a single result between threads
        return values.expand(2, -1).sum(1)[:1]
    return values.sum(1)


def gram_rows(blocks: Sequence[Tensor]) -> list[list[Tensor]]:
    """The inner products of N blocks (rows, n), row by row: [i][j] (rows,) float64 for j <= i."""
    wide = [block.double() for block in blocks]
    return [[_row_sums(x * y) for y in wide[: i + 1]] for i, x in enumerate(wide)]


class Gram:
    """The matrix of inner products of N tensors that come block by block."""

    def __init__(self, count: int) -> None:
        self.sums: list[list[list[float]]] = [[[] for _ in range(i + 1)] for i in range(count)]

    def add(self, blocks: Sequence[Tensor]) -> None:
        """The next block of each tensor."""
        for i, row in enumerate(gram_rows([as_rows(block) for block in blocks])):
            for j, part in enumerate(row):
                self.sums[i][j] += part.tolist()

    def matrix(self) -> Tensor:
        """(N, N) float64."""
        lower = [[math.fsum(sums) for sums in row] for row in self.sums]
        count = len(lower)
        full = [[lower[max(i, j)][min(i, j)] for j in range(count)] for i in range(count)]
        return torch.tensor(full, dtype=torch.float64)
