"""Where RULER puts needles and chain lines: a grid of 40 depths in essays, any line elsewhere."""

from __future__ import annotations

import random
from collections.abc import Sequence

DEPTHS = tuple(round(100 * step / 39) for step in range(40))
"""Percent of the sentences of an essay that stand before a needle."""


def grid_positions(rng: random.Random, sentences: int, count: int) -> list[int]:
    """`count` sentence numbers in ascending order, at different depths of the grid."""
    return sorted(int(sentences * (depth / 100)) for depth in sample_depths(rng, count))


def sample_depths(rng: random.Random, count: int) -> list[int]:
    """`count` different depths of the grid, in percent, in ascending order."""
    return sorted(rng.sample(DEPTHS, count))


def line_positions(rng: random.Random, lines: int, count: int) -> list[int]:
    """`count` different line numbers in ascending order, drawn uniformly."""
    return sorted(rng.sample(range(lines), count))


def insert(pieces: Sequence[str], inserted: Sequence[str], positions: Sequence[int]) -> str:
    """The text of `pieces` with the i-th of `inserted` in front of piece `positions[i]`.

    positions: ascending, each from 0 to len(pieces).
    """
    parts: list[str] = []
    done = 0
    for text, position in zip(inserted, positions, strict=True):
        parts += [*pieces[done:position], text]
        done = position
    return "".join([*parts, *pieces[done:]])
