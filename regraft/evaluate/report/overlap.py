"""Lines of a plot that cover each other: the lower ones are drawn wider, so that all are seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]


def covered_by(lines: Sequence[Sequence[Point]]) -> list[int]:
    """For each line, how many later lines share a segment (or the only point) with it."""
    parts: list[set[object]] = [{*pairwise(points)} or {*points} for points in lines]
    return [
        sum(bool(mine & other) for other in parts[number + 1 :])
        for number, mine in enumerate(parts)
    ]
