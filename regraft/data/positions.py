"""Positions of the tokens of a training row: a long context trained with shorter rows.

contiguous    0, 1, 2, ..., or the same from a random offset.
pose          "PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training"
              (arXiv 2309.10400): two chunks, the first at most half the row and at position 0,
              the second at a random distance; as in its code, it also skips a random amount of
              text.
multi_chunk   a random number of chunks with random cuts, their skips uniform and sorted. Two
              chunks have only near and very far distances. If skips are drawn one after another
              instead, the first few take most of the available positions. With 16 chunks or more
              the distances are distributed about as in a contiguous row of the target length
              (`contiguous_distances`).

Positions are pure functions of (seed, step, sample, document), so every process of a cluster and
every resumed run draws the same. Attention must not stop at a skip: transformers' own masks take a
jump in positions for the start of another document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """Draws the positions of rows.

    target: positions are in [0, target). chunks: (minimum, maximum); their number is log-uniform.
    least: shortest chunk in tokens. unskipped: share of rows that are contiguous. offset: these
    start at a random position. content: 'near' takes consecutive text, 'far' skips text together
    with positions as far as the document is long enough.
    """

    kind: Literal["contiguous", "pose", "multi_chunk"]
    target: int
    chunks: tuple[int, int] = (2, 64)
    least: int = 64
    unskipped: float = 0.2
    offset: bool = False
    content: Literal["near", "far"] = "far"

    @property
    def skips(self) -> bool:
        """Whether positions may have gaps."""
        return self.kind != "contiguous"

    def reach(self, window: int) -> int:
        """Tokens of a document from which a row of `window` tokens is drawn."""
        if self.kind == "pose":
            return min(5 * window, self.target)  # its code reads five windows of text
        return self.target if self.skips and self.content == "far" else window

    def sample(
        self, length: int, available: int, key: tuple[int, int, int, int]
    ) -> tuple[Ints, Ints]:
        """(positions, content), both int64 [length] and strictly increasing.

        length: tokens of the document in the row. available: tokens of the document from the row's
        first one; content indexes them. key: (seed, step, sample, document).
        Raises ValueError if length exceeds target or available.
        """
        if not 1 <= length <= min(self.target, available):
            raise ValueError(f"{length} tokens of {available} do not fit in {self.target}")
        rng = np.random.default_rng(key)
        index = np.arange(length, dtype=np.int64)
        if not self.skips or rng.random() < self.unskipped:
            start = int(rng.integers(self.target - length + 1)) if self.offset else 0
            return index + start, index
        if self.kind == "pose":
            return _pose(length, available, self.target, rng)
        return self._multi_chunk(index, available, rng)

    def _multi_chunk(
        self, index: Ints, available: int, rng: np.random.Generator
    ) -> tuple[Ints, Ints]:
        length = len(index)
        most = min(self.chunks[1], length // self.least)
        if most < 2:
            return index, index
        fewest = min(self.chunks[0], most)
        count = min(most, int(np.exp(rng.uniform(np.log(fewest), np.log(most + 1)))))
        free = length - count * self.least  # sorted cuts with at least `least` between them
        cuts = np.sort(rng.integers(0, free + 1, count - 1)) + self.least * np.arange(1, count)
        skips = np.sort(rng.integers(0, self.target - length + 1, count))
        added = np.repeat(skips, np.diff([0, *cuts, length]))
        far = self.content == "far" and available > length
        # up to the end of the document, tokens are as far apart as their positions
        text = np.minimum(added - skips[0], available - length) if far else 0 * added
        return index + added, index + text


def _pose(length: int, available: int, target: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Two chunks, drawn as in the paper's code."""
    index = np.arange(length, dtype=np.int64)
    if length < 2:
        return index, index
    first = int(rng.integers(1, (length + 1) // 2 + 1))
    skip = int(rng.integers(0, target - length + 1))
    text = int(rng.integers(0, available - length + 1))
    late = index >= first
    return index + skip * late, index + text * late


def contiguous_distances(target: int, edges: Ints) -> NDArray[np.float64]:
    """Shares of the (query, key) pairs of a contiguous row of `target` tokens, by distance.

    Share i is of distances in [edges[i], edges[i + 1]); distance d occurs target - d times.
    """
    cumulative = edges * (target - (edges - 1) / 2)  # pairs at distances 0 to edge - 1
    return np.diff(cumulative) / (target * (target + 1) / 2)
