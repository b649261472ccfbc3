"""Rows as tensors: token ids, positions, shifted labels, and the document of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.data.positions import Sampler
from regraft.data.rows import Piece
from regraft.data.tokens import Tokens

IGNORED = -100  # label of a token that has none; cross entropy's default ignore_index


@dataclass(frozen=True)
class Row:
    """One row of a batch, on the CPU; every tensor is int64 [length].

    documents: number of the document of each token. short: whether the source is one of short text.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    documents: Tensor
    short: bool = False

    @property
    def valid(self) -> int:
        """Tokens that have a label."""
        return int((self.labels != IGNORED).sum())


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Stack rows into the batch that `Mesh.cut` takes: [B, S] each."""
    return {
        "input_ids": torch.stack([row.ids for row in rows]),
        "position_ids": torch.stack([row.positions for row in rows]),
        "labels": torch.stack([row.labels for row in rows]),
        "documents": torch.stack([row.documents for row in rows]),
    }


def make_row(
    pieces: Sequence[Piece],
    tokens: Tokens,
    length: int,
    sampler: Sampler,
    key: tuple[int, int, int],
    *,
    masks: bool,
    padding: int,
    short: bool = False,
) -> Row:
    """A row of `length` tokens from pieces of documents, padded at the end.

    key: (seed, step, sample), which determines the positions of each document. masks: whether
    documents are separate; without masks the row is one document. A label is the token that follows
    in the document, also where the row skips text; the last token of a document has none, and
    neither has one that is followed by a token of a conversation that is not learned.
    """
    ids, positions, labels, documents, learned = [], [], [], [], []
    at = 0
    for number, piece in enumerate(pieces):
        size = piece.stop - piece.start
        own_positions, text = sampler.sample(size, piece.reach - piece.start, (*key, number))
        following = _following(tokens, piece, int(text[-1]))
        if tokens.chat is not None and (following[text] == IGNORED).all():
            text = np.arange(size)  # what is skipped has all that there is to learn
        ids.append(tokens.slice(piece.document, piece.start, piece.start + len(following))[text])
        learned.append(
            tokens.learned(piece.document, piece.start, piece.start + len(following))[text]
        )
        labels.append(following[text])
        positions.append(own_positions)
        documents.append(np.full(size, number if masks else 0))
        at += size
    if not masks and len(pieces) > 1:
        joined = np.where(np.concatenate(learned), np.concatenate(ids), IGNORED)
        labels = [np.append(joined[1:], IGNORED)]
        positions = [sampler.sample(at, at, (*key, 0))[0]]
    if at < length:
        ids.append(np.full(length - at, padding))
        labels.append(np.full(length - at, IGNORED))
        positions.append(np.arange(length - at))
        documents.append(np.full(length - at, len(pieces)))

    def tensor(parts: list[Any]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return Row(tensor(ids), tensor(positions), tensor(labels), tensor(documents), short)


def _following(tokens: Tokens, piece: Piece, last: int) -> NDArray[np.int64]:
    """The token after each of the tokens 0 to `last` of a piece, IGNORED where it is not learned or
    there is none."""
    start, stop = piece.start + 1, piece.start + last + 2
    following = tokens.slice(piece.document, start, stop)
    following = np.where(tokens.learned(piece.document, start, stop), following, IGNORED)
    return np.append(following, [IGNORED] * (last + 1 - len(following)))
