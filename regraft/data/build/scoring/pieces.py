"""A document in pieces that a model reads at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


def pieces(ids: Sequence[int], context: int, start: int | None) -> Iterator[list[int]]:
    """The document in pieces of at most `context` tokens, about equally long, each after the
    beginning-of-text token if the document has one."""
    first = [ids[0]] if len(ids) and ids[0] == start else []
    text = ids[len(first) :]
    count = -(-len(text) // (context - len(first)))
    for part in torch.arange(len(text)).tensor_split(max(1, count)):
        if len(part):
            yield [*first, *text[int(part[0]) : int(part[-1]) + 1]]
