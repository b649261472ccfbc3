"""The exact k largest magnitudes of a tensor that comes as a stream of blocks, without sorting it.

A sample of whole rows gives a bracket around the k-th largest value. One pass counts the entries
above the bracket and collects those inside it (a few per cent), and the k-th largest is selected
from these. Deltas of bfloat16 weights take few distinct values, so many entries may equal an end of
the bracket: they are counted per row and not collected. If the sample misleads (rows of very
unequal size, hostile data), a radix histogram over the floats' bits determines the value in two
more passes, so the result is exact for any data.

Ties: exactly k entries are selected, those above the k-th largest magnitude and, of those equal to
it, the ones with the lowest flat indices.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.errors import InputError

Stream = Callable[[int], Iterator[list[Tensor]]]

_SAMPLE = 2**20  # elements of the sample; a tensor of at most twice as many is not sampled
_MAX_STEP = 63  # largest distance of sampled rows: huge tensors get larger samples
_MIN_ROWS = 64  # a tensor with fewer rows is not sampled: the bracket would be too wide
_SHARED = 8  # equal entries in the sample from which a value counts as shared by many
_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}
_DEVIATIONS = 4.5  # half the bracket's width, in standard errors of the sample's quantile


@dataclass(frozen=True)
class Cut:
    """The k largest: every entry above `value`, and of those equal to it all in the rows before
    `row` and the first `within` in that row."""

    value: float
    row: int = 0
    within: int = 0

    def mask(self, magnitudes: Tensor, first_row: int) -> Tensor:
        """(rows, n) -> bool, for the block that begins at `first_row`."""
        ahead = min(max(self.row - first_row, 0), magnitudes.shape[0])
        if ahead == magnitudes.shape[0]:
            return magnitudes >= self.value
        selected = magnitudes > self.value
        if ahead:
            selected[:ahead] = magnitudes[:ahead] >= self.value
        if self.within and first_row <= self.row:
            equal = magnitudes[ahead] == self.value
            selected[ahead] |= equal & (equal.cumsum(0) <= self.within)
        return selected

    def trim(self, values: Tensor, first_row: int) -> Tensor:
        """(rows, n) -> the same with zeros where `mask` of the magnitudes is false."""
        hardshrink = torch.nn.functional.hardshrink  # one pass where a mask would take three
        ahead = min(max(self.row - first_row, 0), values.shape[0])
        bound = torch.tensor(self.value, dtype=values.dtype)
        below = float(torch.nextafter(bound, bound.new_tensor(-math.inf)))
        if ahead == values.shape[0]:
            return hardshrink(values, below)
        result = hardshrink(values, self.value)
        if ahead:
            result[:ahead] = hardshrink(values[:ahead], below)
        if self.within and first_row <= self.row:
            row = values[ahead : ahead + 1]
            result[ahead : ahead + 1] = row.where(self.mask(row.abs(), self.row), 0)
        return result


ALL, NONE = Cut(-1.0), Cut(math.inf)


def largest(stream: Stream, requests: list[tuple[int, int]], rows: int, columns: int) -> list[Cut]:
    """The cuts that select exactly k entries, one for each (input, k) in `requests`.

    `stream(step)` yields, block by block, the magnitudes of every input as (rows, columns), of the
    rows 0, step, 2 step, ... only. Passes over the stream: none if every k is 0 or all, one for
    small tensors, else a sample and one, or up to four (six in float64) if the sample misleads.
    Raises InputError if the k-th largest is NaN.
    """
    count = rows * columns
    cuts = {i: ALL if k >= count else NONE for i, (_, k) in enumerate(requests)}
    searches = {i: _Search(k) for i, (_, k) in enumerate(requests) if 0 < k < count}
    if searches and count > 2 * _SAMPLE and rows >= _MIN_ROWS:
        step = min(count // _SAMPLE, _MAX_STEP) | 1  # odd: attention heads repeat every 2^n rows
        parts = list(stream(step))
        for i, search in searches.items():
            search.bracket(torch.cat([part[requests[i][0]] for part in parts]), count)
        del parts
    while searches:
        row = 0
        for part in stream(1):
            for i, search in searches.items():
                search.probe.add(part[requests[i][0]], row)
            row += part[0].shape[0]
        cuts.update((i, search.cut) for i, search in searches.items() if search.finished())
        searches = {i: search for i, search in searches.items() if search.cut is NONE}
    return [cuts[i] for i in range(len(requests))]


class _Search:
    """The search for one k: the range that the next pass searches, and the cut once it is known."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.probe: _Range | _Radix = _Range(0.0, math.inf)
        self.cut = NONE
        self.value_known = False

    def bracket(self, sample: Tensor, count: int) -> None:
        """Search between two quantiles of a sample (rows, columns), `_DEVIATIONS` standard errors
        below and above that of k. Whole rows are sampled, so the error is that of row means."""
        flat = sample.flatten()
        rank = self.k / count * flat.numel()
        center = _kth_largest(flat, rank)
        above = torch.count_nonzero(sample > center, dim=1) / sample.shape[1]
        margin = (_DEVIATIONS * float(above.std()) / math.sqrt(above.numel()) + 1e-4) * flat.numel()
        low = _kth_largest(flat, rank + margin) if rank + margin < flat.numel() else 0.0
        high = _kth_largest(flat, rank - margin) if rank - margin >= 1 else math.inf
        shared_low, shared_high = (_count(_array(flat) == end) >= _SHARED for end in (low, high))
        self.probe = _Range(low, high, shared_low, shared_high, limit=count // 4)

    def finished(self) -> bool:
        """Whether the cut is known after a whole pass; if not, set up the next probe."""
        if isinstance(self.probe, _Radix):
            value = self.probe.narrow()
            if value is not None:
                self.value_known, self.probe = True, _Range(value, value)
            return False
        cut = self.probe.cut(self.k)
        if cut is not None:
            self.cut = cut
            return True
        if self.value_known:
            raise InputError("a delta holds values that are not numbers")
        self.probe = _Radix(self.k)
        return False


class _Range:
    """A pass that counts the entries above `high` and collects those in [low, high], at most about
    `limit` of them. Entries equal to an end that many share are counted per row instead."""

    def __init__(
        self,
        low: float,
        high: float,
        shared_low: bool = False,
        shared_high: bool = False,
        limit: int | None = None,
    ) -> None:
        self.low, self.high, self.limit = low, high, limit
        self.shared_high = shared_high or low == high
        self.shared_low = shared_low and low != high
        self.above = 0
        self.at_high: list[int] = []
        self.at_low: list[int] = []
        self.inside = _Buffer()
        self.columns = 1

    def add(self, magnitudes: Tensor, row: int) -> None:
        self.columns = magnitudes.shape[1]
        flat = _array(magnitudes)
        above = flat > self.high
        self.above += _count(above)
        if self.shared_high:
            self.at_high += _rows_with(magnitudes, self.high)
        if self.shared_low:
            self.at_low += _rows_with(magnitudes, self.low)
        if self.low == self.high or self._too_many():
            return
        if self.shared_high:
            above = flat >= self.high
        index = _positions((flat > self.low if self.shared_low else flat >= self.low) ^ above)
        self.inside.add(magnitudes.flatten()[index], index + row * self.columns)

    def cut(self, k: int) -> Cut | None:
        """The cut for k; None if the k-th largest lies outside the range."""
        k -= self.above
        if k <= 0 or self._too_many():
            return None
        if k <= sum(self.at_high):
            return _within_rows(self.high, self.at_high, k)
        k -= sum(self.at_high)
        if k <= self.inside.size:
            values, index = self.inside.content()
            value = _kth_largest(values, k)
            equal = index[values == value]
            last = int(equal[k - int(torch.count_nonzero(values > value)) - 1])
            start = last - last % self.columns
            within = int(torch.count_nonzero((equal >= start) & (equal <= last)))
            return Cut(value, last // self.columns, within)
        k -= self.inside.size
        return _within_rows(self.low, self.at_low, k) if k <= sum(self.at_low) else None

    def _too_many(self) -> bool:
        return self.limit is not None and self.inside.size > self.limit


class _Buffer:
    """Values and their flat indices in two growing buffers. Many small tensors that outlive their
    block would each pin the free megabyte around them, so that the heap grows with the stream."""

    def __init__(self) -> None:
        self.size = 0
        self.values, self.index = torch.empty(0), torch.empty(0, dtype=torch.int64)

    def add(self, values: Tensor, index: Tensor) -> None:
        end = self.size + values.numel()
        if end > self.values.numel() or not self.values.numel():
            capacity = max(2 * end, 2**16)
            grown = values.new_empty(capacity), index.new_empty(capacity)
            grown[0][: self.size] = self.values[: self.size]
            grown[1][: self.size] = self.index[: self.size]
            self.values, self.index = grown
        self.values[self.size : end] = values
        self.index[self.size : end] = index
        self.size = end

    def content(self) -> tuple[Tensor, Tensor]:
        return self.values[: self.size], self.index[: self.size]


class _Radix:
    """Passes that determine the k-th largest value 16 bits at a time, each by a histogram of the
    entries that share the higher bits. Non-negative floats order as the integers of their bits."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.high_bits, self.shift = 0, -1  # the bits known so far; right shift of the next 16
        self.counts = torch.zeros(2**16, dtype=torch.int64)
        self.dtype = torch.float32

    def add(self, magnitudes: Tensor, row: int) -> None:
        self.dtype = magnitudes.dtype
        top = 48 if self.dtype == torch.float64 else 16
        if self.shift < 0:
            self.shift = top
        bits = magnitudes.flatten().view(_INTEGER[self.dtype]) >> self.shift
        if self.shift < top:
            bits = bits[bits >> 16 == self.high_bits]
        digits = (bits & 0xFFFF).to(torch.int64)
        self.counts += torch.bincount(digits, minlength=2**16).cpu()

    def narrow(self) -> float | None:
        """Take 16 bits from the histogram of a pass. Returns the value once all bits are known."""
        from_top = self.counts.flip(0).cumsum(0)
        below_top = int(torch.searchsorted(from_top, self.k))
        self.k -= int(from_top[below_top - 1]) if below_top else 0
        self.high_bits = self.high_bits << 16 | (2**16 - 1 - below_top)
        self.counts.zero_()
        if self.shift:
            self.shift -= 16
            return None
        return float(torch.tensor(self.high_bits, dtype=_INTEGER[self.dtype]).view(self.dtype))


def _kth_largest(values: Tensor, k: float) -> float:
    """The k-th largest value, k rounded to 1 ... their number."""
    count = values.numel()
    k = min(max(round(k), 1), count)
    return float(values.kthvalue(count - k + 1).values)


def _array(values: Tensor) -> Any:
    """The flat values as the array that compares fastest: on CPU numpy's, ten times torch's."""
    return values.flatten().numpy() if values.device.type == "cpu" else values.flatten()


def _count(chosen: Any) -> int:
    return int(np.count_nonzero(chosen) if isinstance(chosen, np.ndarray) else chosen.sum())


def _positions(chosen: Any) -> Tensor:
    """The indices of the true entries of a flat array."""
    if isinstance(chosen, np.ndarray):
        return torch.from_numpy(np.flatnonzero(chosen))
    return chosen.nonzero()[:, 0]


def _rows_with(values: Tensor, value: float) -> list[int]:
    """How many entries of each row equal `value`."""
    equal = (_array(values) == value).reshape(tuple(values.shape))
    counts = np.count_nonzero(equal, axis=1) if isinstance(equal, np.ndarray) else equal.sum(1)
    return list(counts.tolist())


def _within_rows(value: float, counts: list[int], k: int) -> Cut:
    """The cut that selects the first k of the entries equal to `value`, `counts` of them a row."""
    ends = list(accumulate(counts))
    row = bisect_left(ends, k)
    return Cut(value, row, k - (ends[row] - counts[row]))
