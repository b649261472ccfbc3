"""Positions of the tokens of a training row: far positions without a sequence that long.

contiguous    0, 1, 2, ..., or the same from a random offset.
pose          "PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training"
              (arXiv 2309.10400): two chunks, the first at most half the row and at position 0,
              the second skipped ahead; as in its code, text is skipped too, by its own amount.
multi_chunk   a random number of chunks with random cuts, their skips uniform and sorted. Two
              chunks see only near and very far distances; drawing skips one after another, as
              others do, spends the room on the first few. With 16 chunks or more the distances
              follow those of a really long row, each about as often as there (`real_law`).

All are pure functions of (seed, step, sample, document), so that every process of a cluster and
every resumed run draws the same. Attention has to see across the skips: transformers' own masks
take a jump for the start of another document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """How rows get their positions.

    target: positions lie in [0, target). chunks: (fewest, most), the number is log-uniform.
    least: shortest chunk in tokens. unskipped: share of rows that stay contiguous. offset: such
    rows begin anywhere that fits. content: 'near' keeps the text of a row together, 'far' skips
    text along with positions as far as the document reaches.
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
        return self.kind != "contiguous"

    def reach(self, window: int) -> int:
        """Tokens of a document that a row of `window` tokens may be drawn from."""
        if self.kind == "pose":
            return min(5 * window, self.target)  # as its code tokenises: five windows of text
        return self.target if self.skips and self.content == "far" else window

    def sample(
        self, length: int, available: int, key: tuple[int, int, int, int]
    ) -> tuple[Ints, Ints]:
        """(positions, content), both int64 [length] and strictly increasing.

        length: tokens of the document in the row. available: tokens it has from where the row
        begins; content indexes them. key: (seed, step, sample, document).
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
        room = self.target - length
        free = length - count * self.least  # sorted cuts with at least `least` between them
        cuts = np.sort(rng.integers(0, free + 1, count - 1)) + self.least * np.arange(1, count)
        skips = np.sort(rng.integers(0, room + 1, count))
        added = np.repeat(skips, np.diff([0, *cuts, length]))
        far = self.content == "far" and available > length
        # as far as the document reaches, the text is really that far apart
        text = np.minimum(added - skips[0], available - length) if far else 0 * added
        return index + added, index + text


def _pose(length: int, available: int, target: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Two chunks, as the paper's code draws them."""
    index = np.arange(length, dtype=np.int64)
    if length < 2:
        return index, index
    first = int(rng.integers(1, (length + 1) // 2 + 1))
    skip = int(rng.integers(0, target - length + 1))
    text = int(rng.integers(0, available - length + 1))
    late = index >= first
    return index + skip * late, index + text * late


def real_law(target: int, edges: Ints) -> NDArray[np.float64]:
    """Share of (query, key) pairs whose distance lies in each [edges[i], edges[i + 1]).

    For one row of `target` contiguous tokens: distance d occurs target - d times.
    """
    cumulative = edges * (target - (edges - 1) / 2)  # pairs at distances 0 to edge - 1
    return np.diff(cumulative) / (target * (target + 1) / 2)
