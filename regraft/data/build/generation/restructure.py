"""Texts made of other texts so that reading them needs distant context. Pure functions.

untie       "Untie the Knots: An Efficient Data Augmentation Strategy for Long-Context Pre-Training"
            (arXiv 2409.04774): documents are cut, their pieces shuffled among each other, and every
            cut gets a key at both of its ends, so that each piece continues one that is far away.
            The last piece of a document is followed by the keys of its cuts. Pieces of a document
            stay in order.
interleave  "NExtLong: Toward Effective Long-Context Training without Long Documents" (arXiv
            2501.12766): between the pieces of a document come the pieces of other documents that
            are most like them, by embedding.
reorder     the passages of a document in random order, and then their right order.

Where we differ: keys are text, not tokens of their own, so that no vocabulary changes; similar
pieces come from a pool of neighbouring documents instead of an index of the whole corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ALPHABET = list("bcdfghjklmnpqrstvwxz")

Floats = NDArray[np.float32]


def random_cuts(ends: NDArray[np.int64], pieces: int, rng: np.random.Generator) -> list[int]:
    """`pieces` - 1 places in characters that cut a text at random, no piece shorter than half of an
    equal share. ends: characters up to the end of each token."""
    least = len(ends) // (2 * pieces)
    free = len(ends) - pieces * least
    cuts = np.sort(rng.integers(0, free + 1, pieces - 1)) + least * np.arange(1, pieces)
    return [int(ends[cut - 1]) for cut in cuts if 0 < cut < len(ends)]


def even_cuts(ends: NDArray[np.int64], size: int) -> list[int]:
    """Places in characters that cut a text into pieces of about `size` tokens, equally long."""
    pieces = max(1, round(len(ends) / size))
    return [int(ends[len(ends) * number // pieces - 1]) for number in range(1, pieces)]


def keys(count: int, rng: np.random.Generator) -> list[str]:
    """`count` different keys of four consonants and a digit."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn["".join(rng.choice(_ALPHABET, 4)) + str(rng.integers(10))] = None
    return list(drawn)


def untie(
    texts: Sequence[Sequence[str]],
    rng: np.random.Generator,
    *,
    tail: str,
    head: str,
    trace: str,
) -> str:
    """One text of the pieces of several texts.

    texts: the pieces of each, in order. tail, head: written after and before a cut, with its
    `{key}`. trace: written after the last piece of a text that was cut, with its `{keys}`.
    """
    order = rng.permutation(np.repeat(np.arange(len(texts)), [len(pieces) for pieces in texts]))
    names = keys(sum(len(pieces) - 1 for pieces in texts), rng)
    own: list[list[str]] = []
    for pieces in texts:
        own.append(names[: len(pieces) - 1])
        names = names[len(pieces) - 1 :]
    done, out = [0] * len(texts), []
    for number in order.tolist():
        piece, cuts = done[number], own[number]
        out += [head.format(key=cuts[piece - 1])] if piece else []
        out.append(texts[number][piece])
        done[number] += 1
        if piece < len(cuts):
            out.append(tail.format(key=cuts[piece]))
        elif cuts:
            out.append(trace.format(keys=" ".join(cuts)))
        out.append("\n\n")
    return "".join(out[:-1])


def nearest(vectors: Floats, owners: NDArray[np.int64], at: int, count: int) -> list[int]:
    """The `count` pieces of other documents that are most like piece `at`, the best first; of equal
    ones the earlier.

    vectors: [pieces, d], of length 1. owners: the document of each piece.
    """
    similarity = np.where(owners == owners[at], -np.inf, vectors @ vectors[at])
    best = np.argsort(-similarity, kind="stable")[:count]
    return [int(piece) for piece in best if similarity[piece] > -np.inf]


def interleave(pieces: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    """The pieces of a document with `others[i]` between piece i and piece i + 1."""
    out = [pieces[0]]
    for piece, between in zip(pieces[1:], others, strict=True):
        out += [*between, piece]
    return "\n\n".join(text.strip("\n") for text in out)


def reorder(passages: Sequence[str], rng: np.random.Generator, *, passage: str, order: str) -> str:
    """The passages of a text, shuffled and numbered, and then their right order.

    passage: written before each, with its `{number}`. order: written at the end, with the
    `{numbers}` in the right order.
    """
    shuffled = rng.permutation(len(passages))
    text = "".join(
        passage.format(number=place) + passages[which].strip("\n") + "\n\n"
        for place, which in enumerate(shuffled.tolist(), 1)
    )
    numbers = np.argsort(shuffled) + 1
    return text + order.format(numbers=" ".join(map(str, numbers)))
