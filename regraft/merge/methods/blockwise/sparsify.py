"""Sparsification of deltas: the largest entries, all but the extremes, a random or a ranked draw.

A scheme's `apply(delta, row)` sets the dropped entries of a block to 0; `row` is the tensor's row
at which the block begins, and the entries do not depend on how the tensor is cut into blocks. On
CPU torch's boolean masks cost ten times an arithmetic pass, hence hardshrink and masks of 0.0 and
1.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from regraft.merge.methods.blockwise.blocks import Blocks
from regraft.merge.methods.blockwise.noise import uniform
from regraft.merge.methods.blockwise.reduce import as_rows, row_sums, rows_and_columns
from regraft.merge.methods.blockwise.top_k import Cut, Stream, largest

_NO_NORM = 1e-7  # L1 norms below it are not matched, as in mergekit


class Scheme(Protocol):
    """Sparsification of one input's delta."""

    def apply(self, delta: Tensor, row: int) -> Tensor: ...


@dataclass(frozen=True)
class All:
    """Nothing is dropped: density 1 of every method."""

    def apply(self, delta: Tensor, row: int) -> Tensor:
        return delta


@dataclass(frozen=True)
class Largest:
    """The largest magnitudes."""

    cut: Cut

    def apply(self, delta: Tensor, row: int) -> Tensor:
        return self.cut.trim(as_rows(delta), row).view(delta.shape)


@dataclass(frozen=True)
class Between:
    """The magnitudes that `outer` selects and `inner` does not."""

    outer: Cut
    inner: Cut

    def apply(self, delta: Tensor, row: int) -> Tensor:
        rows = as_rows(delta)
        between = self.outer.trim(rows, row) - self.inner.trim(rows, row)
        return between.view(delta.shape)


def _uniform_like(delta: Tensor, seed: int, stream: int, row: int) -> Tensor:
    rows, columns = as_rows(delta).shape
    return uniform(seed, stream, row, (rows, columns), delta.device).view(delta.shape)


@dataclass(frozen=True)
class Drawn:
    """Every entry with probability `density`."""

    density: float
    seed: int
    stream: int

    def apply(self, delta: Tensor, row: int) -> Tensor:
        drawn = _uniform_like(delta, self.seed, self.stream, row)
        return delta * drawn.lt_(self.density).to(delta.dtype)


@dataclass(frozen=True)
class RankDrawn:
    """Every entry with a probability that rises linearly with the rank of its magnitude along axis
    1, from density - epsilon to density + epsilon; the only entry of a row with `density`. Of equal
    magnitudes the one with the lower index ranks lower."""

    density: float
    epsilon: float
    seed: int
    stream: int

    def apply(self, delta: Tensor, row: int) -> Tensor:
        ranked = delta if delta.ndim > 1 else delta.reshape(1, -1)
        count = ranked.shape[1]
        columns = torch.arange(count, device=delta.device)
        columns = columns.view(1, -1, *[1] * (ranked.ndim - 2)).expand_as(ranked)
        order = _ascending_order(ranked.abs(), columns)
        ranks = torch.empty_like(ranked).scatter_(1, order, columns.to(ranked.dtype))
        share = ranks.div_(max(1, count - 1))
        if count == 1:
            share += 0.5
        bound = share.mul_(2 * self.epsilon).add_(self.density - self.epsilon)
        drawn = _uniform_like(ranked, self.seed, self.stream, row).to(delta.dtype)
        return delta * drawn.lt_(bound).view(delta.shape)


def _ascending_order(magnitudes: Tensor, columns: Tensor) -> Tensor:
    """The stable argsort along axis 1; `columns` counts 0, 1, 2, ... there. On CPU numpy sorts
    integers of the float's bits and the column, 13 times faster than torch sorts floats."""
    if magnitudes.device.type != "cpu" or magnitudes.dtype != torch.float32:
        return magnitudes.sort(dim=1, stable=True).indices
    keys = magnitudes.view(torch.int32).to(torch.int64).bitwise_left_shift_(32)
    keys.bitwise_or_(columns).numpy().sort(axis=1)
    return keys.bitwise_and_(2**32 - 1)


@dataclass(frozen=True)
class Sparsifier:
    """A scheme for each input, and the factors that restore the deltas' L1 norms."""

    schemes: Sequence[Scheme]
    factors: Sequence[float]


def trim(
    blocks: Blocks, shape: tuple[int, ...], density: Sequence[float], rescale: bool = False
) -> Sparsifier:
    """TIES: keep the int(density n) largest entries, at least one unless the density is 0."""
    rows, columns = rows_and_columns(shape)
    counts = [max(1, int(d * rows * columns)) if d > 0 else 0 for d in density]
    cuts = largest(_magnitudes(blocks), list(enumerate(counts)), rows, columns)
    schemes = [All() if d >= 1 else Largest(cut) for d, cut in zip(density, cuts, strict=True)]
    return _rescaled(blocks, schemes, rescale)


def trim_both_ends(
    blocks: Blocks,
    shape: tuple[int, ...],
    density: Sequence[float],
    gamma: Sequence[float],
    rescale: bool,
) -> Sparsifier:
    """Breadcrumbs: drop the int(gamma n) largest entries, fewer if less than int(density n) would
    remain, and keep the next int(density n). Density 1 keeps all entries for any gamma."""
    rows, columns = rows_and_columns(shape)
    count = rows * columns
    requests = []
    for source, (share, extreme) in enumerate(zip(density, gamma, strict=True)):
        remaining = count if share >= 1 else int(share * count)
        dropped = min(int(extreme * count), count - remaining)
        requests += [(source, dropped + remaining), (source, dropped)]
    cuts = largest(_magnitudes(blocks), requests, rows, columns)
    pairs = zip(density, cuts[::2], cuts[1::2], strict=True)
    schemes = [All() if d >= 1 else Between(outer, inner) for d, outer, inner in pairs]
    return _rescaled(blocks, schemes, rescale)


def draw(blocks: Blocks, seed: int, density: Sequence[float], rescale: bool) -> Sparsifier:
    """DARE: keep each entry with probability `density`."""
    schemes = [All() if d >= 1 else Drawn(d, seed, i) for i, d in enumerate(density)]
    return _rescaled(blocks, schemes, rescale)


def draw_by_rank(
    blocks: Blocks, seed: int, density: Sequence[float], epsilon: Sequence[float], rescale: bool
) -> Sparsifier:
    """DELLA's MagPrune: keep large entries of a row more often than small ones."""
    schemes: list[Scheme] = []
    for i, (share, half_width) in enumerate(zip(density, epsilon, strict=True)):
        certain = All() if share >= 1 else Drawn(0.0, seed, i) if share <= 0 else None
        schemes.append(certain or RankDrawn(share, half_width, seed, i))
    return _rescaled(blocks, schemes, rescale)


def _magnitudes(blocks: Blocks) -> Stream:
    def stream(step: int) -> Iterator[list[Tensor]]:
        for tensors, base in blocks(step):
            assert base is not None
            yield [as_rows(t - base).abs_() for t in tensors]

    return stream


def _rescaled(blocks: Blocks, schemes: Sequence[Scheme], rescale: bool) -> Sparsifier:
    """The schemes with their factors: 1, or if `rescale` the L1 norm before over that after, which
    takes one pass over the blocks."""
    sparse = [not isinstance(scheme, All) for scheme in schemes]
    if not rescale or not any(sparse):
        return Sparsifier(schemes, [1.0] * len(schemes))
    before: list[list[float]] = [[] for _ in schemes]
    after: list[list[float]] = [[] for _ in schemes]
    row = 0
    for tensors, base in blocks():
        assert base is not None
        for i, scheme in enumerate(schemes):
            if sparse[i]:
                delta = tensors[i] - base
                before[i] += row_sums(as_rows(delta).abs())
                after[i] += row_sums(as_rows(scheme.apply(delta, row)).abs())
        row += as_rows(base).shape[0]
    factors = []
    for whole, sparse_norm in zip(map(math.fsum, before), map(math.fsum, after), strict=True):
        factors.append(1.0 if min(whole, sparse_norm) < _NO_NORM else whole / sparse_norm)
    return Sparsifier(schemes, factors)
