"""Lines of a plot that lie on each other: the lower ones are drawn wider, so that all are seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]


def covered_by(lines: Sequence[Sequence[Point]]) -> list[int]:
    """For each line, how many of the later ones share a segment with it (or its only point)."""
    parts: list[set[object]] = [{*pairwise(points)} or {*points} for points in lines]
    return [
        sum(bool(mine & other) for other in parts[number + 1 :])
        for number, mine in enumerate(parts)
    ]
