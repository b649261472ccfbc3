"""Which rank holds which tokens: the zigzag order of a cut sequence, as plain integers.

A sequence of S tokens is cut into 2N chunks; rank r of N holds chunks r and 2N-1-r, so that every
rank has the same number of causally visible pairs ("Striped Attention" 2311.09431 names the
imbalance; the pairing is Zhu's zigzag). Everything else follows from where documents begin and
end, which is arithmetic on a few integers and never a mask tensor.
"""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """Queries q0:q1 attend to keys k0:k1, in the local numbering of each side.

    A causal span is aligned at its end: the last query sees the last key, each one before it one
    key less. Other spans see every key.
    """

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool


Starts = tuple[int, ...]
"""First tokens of the documents of one row, beginning with 0."""


def multiple(context: int, ulysses: int) -> int:
    """A sequence can be cut if its length is a multiple of this: two chunks a context rank, each
    rank's part in `ulysses` pieces."""
    if context == 1:
        return ulysses
    return 2 * context * (ulysses if ulysses % 2 else ulysses // 2)


def chunks(rank: int, context: int, length: int) -> list[tuple[int, int]]:
    """The [start, stop) ranges of the whole sequence that `rank` of `context` holds, in order."""
    if context == 1:
        return [(0, length)]
    size = length // (2 * context)
    return [(i * size, (i + 1) * size) for i in (rank, 2 * context - 1 - rank)]


def pieces(rank: int, context: int, inner: int, ulysses: int, length: int) -> list[tuple[int, int]]:
    """The ranges held before the all-to-all: piece `inner` of the shard of ring rank `rank`."""
    size = length // (context * ulysses)
    low, high = inner * size, (inner + 1) * size
    ranges, offset = [], 0
    for start, stop in chunks(rank, context, length):
        begin, end = max(low - offset, 0), min(high - offset, stop - start)
        if begin < end:
            ranges.append((start + begin, start + end))
        offset += stop - start
    return ranges


def _documents(starts: Starts, length: int) -> list[tuple[int, int]]:
    return list(zip(starts, (*starts[1:], length), strict=True))


def gather_spans(rank: int, context: int, length: int, starts: Starts) -> list[Span]:
    """A rank's own queries against all keys in natural order: one causal span for each document
    in each of its chunks."""
    spans, offset = [], 0
    for start, stop in chunks(rank, context, length):
        for first, last in _documents(starts, length):
            begin, end = max(first, start), min(last, stop)
            if begin < end:
                spans.append(
                    Span(offset + begin - start, offset + end - start, first, end, causal=True)
                )
        offset += stop - start
    return spans


def ring_spans(rank: int, source: int, context: int, length: int, starts: Starts) -> list[Span]:
    """A rank's own queries against the keys of `source`, both as they lie on their ranks.

    Its own keys: one causal square for each document, because a shard read in order is in natural
    order and a document in both its halves fills all between them. Others' keys: at most one
    rectangle, because two chunks that do not touch share at most one document.
    """
    own, other = chunks(rank, context, length), chunks(source, context, length)
    if rank == source:
        squares = []
        for first, last in _documents(starts, length):
            begin, end = _before(own, first), _before(own, last)
            if begin < end:
                squares.append(Span(begin, end, begin, end, causal=True))
        return squares
    half = length // (2 * context)
    if source < rank:  # all queries, the first half of the keys
        k_start, k_stop = other[0]
        first, last = _document_at(k_stop - 1, starts, length)
        span = Span(0, _before(own, last), max(first - k_start, 0), half, causal=False)
    else:  # the second half of the queries, all keys
        q_start, q_stop = own[1]
        first, last = _document_at(q_start, starts, length)
        keys = _before(other, first)
        span = Span(half, half + min(last, q_stop) - q_start, keys, 2 * half, causal=False)
    return [span] if span.q0 < span.q1 and span.k0 < span.k1 else []


def _before(ranges: list[tuple[int, int]], position: int) -> int:
    """Number of tokens of `ranges` before `position`."""
    return sum(min(max(position - start, 0), stop - start) for start, stop in ranges)


def _document_at(position: int, starts: Starts, length: int) -> tuple[int, int]:
    return next(d for d in _documents(starts, length) if d[0] <= position < d[1])
