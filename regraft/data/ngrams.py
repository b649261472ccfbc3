"""Runs of tokens by their hash: whether and where a text repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def ngram_hashes(ids: Sequence[int] | NDArray[np.int64], n: int) -> NDArray[np.uint64]:
    """A hash of 64 bits of every run of `n` tokens; none if there are fewer tokens."""
    tokens = np.asarray(ids, dtype=np.uint64)
    count = max(0, len(tokens) - n + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    if not count:
        return hashes
    with np.errstate(over="ignore"):
        for offset in range(n):
            hashes = (hashes + tokens[offset : offset + count] + np.uint64(1)) * _MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
    return hashes


def first_occurrences(ids: Sequence[int] | NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """For every run of `n` tokens, where the first equal one begins; its own place if it is new."""
    _, first, number = np.unique(ngram_hashes(ids, n), return_index=True, return_inverse=True)
    return first[number]
