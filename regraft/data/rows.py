"""Rows of a source: the pieces of documents in each, and the order of rows.

whole     a row is one document or a window of it; the last window is used if it fills half a row
packed    documents are packed best-fit ("Fewer Truncations Improve Language Modeling", arXiv
          2404.10830): longest first, each into the fullest row that it fits in, so that only
          documents longer than a row are cut
joined    documents one after another in random order, cut where a row ends

Conversations that are whole or packed are cut between two exchanges: a piece has as many of them as
fit, and only an exchange that is longer than a row is cut where the row ends. A piece of a
conversation without a token to learn is left out; of joined rows, a row without one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regraft.data.tokens import Tokens

Kind = Literal["whole", "packed", "joined"]


class Piece(NamedTuple):
    """Tokens [start, stop) of a document. Where positions skip text, tokens are drawn from [start,
    reach)."""

    document: int
    start: int
    stop: int
    reach: int


class Rows:
    """All rows of a source at one length.

    lengths: tokens of each document. selected: numbers of the documents to use. reach: tokens from
    which a whole row is drawn, counted from its first one; the row's length unless positions skip
    text. chat: the tokens of conversations, None for text.
    """

    def __init__(
        self,
        kind: Kind,
        lengths: NDArray[np.int64],
        selected: NDArray[np.int64],
        length: int,
        *,
        reach: int | None = None,
        seed: int = 0,
        chat: Tokens | None = None,
    ) -> None:
        self.length, self._seed = length, seed
        self.rows: Sequence[tuple[Piece, ...]]
        if kind == "joined":
            joined = _joined(lengths, selected, length, seed)
            self.rows = [row for row in joined if chat is None or _teaches(row, chat)]
        else:
            pieces = _windows(lengths, selected, length, chat)
            if kind == "packed":
                self.rows = _packed(pieces, length)
            else:
                self.rows = _whole(pieces, lengths, length, reach or length)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> tuple[Piece, ...]:
        """The pieces of row `number`, counted over epochs; each has its own random order."""
        epoch, index = divmod(number, len(self.rows))
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng((self._seed, epoch))
            self._order = epoch, rng.permutation(len(self.rows))
        return self.rows[int(self._order[1][index])]


class Mixture:
    """The source of each row: deterministic, and never more than one row off the shares.

    counts: rows taken of each source so far; this is the whole state.
    """

    def __init__(self, shares: dict[str, float]) -> None:
        self.shares = shares
        self.counts = dict.fromkeys(shares, 0)

    def next(self) -> tuple[str, int]:
        """(source, number of the row in it): the source that is most below its share."""
        after = sum(self.counts.values()) + 1
        name = max(self.shares, key=lambda key: self.shares[key] * after - self.counts[key])
        self.counts[name] += 1
        return name, self.counts[name] - 1


def hold_out(count: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(documents to train on, documents held out), drawn at random and sorted. Of two or more at
    least one is held out, unless `share` is 0."""
    order = np.random.default_rng((seed, count)).permutation(count)
    held_out = 0 if share == 0 or count < 2 else min(max(1, round(share * count)), count - 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _windows(
    lengths: NDArray[np.int64], selected: NDArray[np.int64], length: int, chat: Tokens | None
) -> list[Piece]:
    """Consecutive pieces of at most `length` tokens, of all selected documents."""
    pieces = []
    for document in selected.tolist():
        size = int(lengths[document])
        cuts = [] if chat is None or size <= length else chat.cuts(document).tolist()
        start = 0
        while start < size:
            stop = min(start + length, size)
            if stop < size:
                fitting = cuts[bisect_right(cuts, start) : bisect_right(cuts, stop)]
                stop = fitting[-1] if fitting else stop
            piece = Piece(document, start, stop, stop)
            if chat is None or _teaches((piece,), chat):
                pieces.append(piece)
            start = stop
    return pieces


def _teaches(pieces: Sequence[Piece], chat: Tokens) -> bool:
    """Whether a token of the pieces is a label. A row has none for its first token."""
    return any(chat.learned(p.document, p.start + 1, p.stop).any() for p in pieces)


def _whole(
    pieces: list[Piece], lengths: NDArray[np.int64], length: int, reach: int
) -> list[tuple[Piece, ...]]:
    rows: list[tuple[Piece, ...]] = []
    for piece in pieces:
        if 2 * (piece.stop - piece.start) >= length:
            end = min(piece.start + reach, int(lengths[piece.document]))
            rows.append((piece._replace(reach=max(end, piece.stop)),))
    return rows


def _packed(pieces: list[Piece], length: int) -> list[tuple[Piece, ...]]:
    pieces.sort(key=lambda piece: piece.start - piece.stop)  # stable: ties stay in order
    rows: list[list[Piece]] = []
    free: list[int] = []  # the distinct numbers of free tokens, sorted
    rows_with: dict[int, list[int]] = {}  # rows by their number of free tokens
    for piece in pieces:
        size = piece.stop - piece.start
        at = bisect_left(free, size)
        if at == len(free):
            rows.append([piece])
            row, remaining = len(rows) - 1, length - size
        else:
            before = free[at]
            row = rows_with[before].pop()
            if not rows_with[before]:
                del rows_with[before], free[at]
            rows[row].append(piece)
            remaining = before - size
        if remaining:
            if remaining not in rows_with:
                insort(free, remaining)
                rows_with[remaining] = []
            rows_with[remaining].append(row)
    return [tuple(row) for row in rows]


def _joined(
    lengths: NDArray[np.int64], selected: NDArray[np.int64], length: int, seed: int
) -> list[tuple[Piece, ...]]:
    rows: list[tuple[Piece, ...]] = []
    row: list[Piece] = []
    free = length
    order = np.random.default_rng((seed, 0, 1)).permutation(selected)
    for document in order.tolist():
        start, size = 0, int(lengths[document])
        while start < size:
            stop = min(start + free, size)
            row.append(Piece(document, start, stop, stop))
            free -= stop - start
            start = stop
            if free == 0:
                rows.append(tuple(row))
                row, free = [], length
    return rows  # an incomplete last row is left out
