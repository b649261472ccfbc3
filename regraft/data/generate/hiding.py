"""Inserting needles into a text, between its sentences."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


def linear_depths(count: int) -> list[float]:
    """`count` depths from 0 (the beginning) to 1, evenly spaced."""
    return [number / (count - 1) for number in range(count)] if count > 1 else [0.5]


def sigmoid_depths(count: int) -> list[float]:
    """`count` depths from 0 to 1, closer together at both ends, where models differ most: a
    logistic curve of steepness 10 over evenly spaced points, with its ends set to 0 and 1."""
    depths = [1 / (1 + math.exp(-10 * (at - 0.5))) for at in linear_depths(count)]
    return [0.0, *depths[1:-1], 1.0] if count > 1 else depths


def hide(pieces: Sequence[str], needles: Sequence[str], depths: Sequence[float]) -> str:
    """The text with each needle at its depth, before the sentence that is there.

    Depth is a share of characters. Needles of equal depth keep their order.
    """
    starts = [0, *accumulate(map(len, pieces))]
    total = starts[-1]
    positions: list[tuple[int, int]] = []
    for number, depth in enumerate(depths):
        at = bisect_right(starts, depth * total) - 1
        positions.append((at, number))
    out, done = [], 0
    for at, number in sorted(positions):
        out += [*pieces[done:at], needles[number]]
        done = at
    return "".join([*out, *pieces[done:]])
