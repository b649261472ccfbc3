"""Shares of a text that repeat what stands before, and Gopher's limits on them.

"Scaling Language Models: Methods, Analysis & Insights from Training Gopher" (arXiv 2112.11446),
table A1.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+|[^\w\s]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: n-grams of few words have different hashes

LIMITS = {
    "lines": 0.30, "paragraphs": 0.30, "characters in lines": 0.20,
    "characters in paragraphs": 0.20, "top 2-gram": 0.20, "top 3-gram": 0.18, "top 4-gram": 0.16,
    "5-grams": 0.15, "6-grams": 0.14, "7-grams": 0.13, "8-grams": 0.12, "9-grams": 0.11,
    "10-grams": 0.10,
}  # fmt: skip
"""The greatest share of each kind of repetition."""


def repetition_shares(text: str) -> dict[str, float]:
    """The share of every kind of repetition in `LIMITS`: of lines and paragraphs that occur before,
    of their characters, of characters of words in the most frequent 2- to 4-gram of words, and of
    those in 5- to 10-grams that occur before, each counted once."""
    result = {}
    for name, parts in (
        ("lines", [line for line in text.split("\n") if line.strip()]),
        ("paragraphs", [part for part in re.split(r"\n{2,}", text) if part.strip()]),
    ):
        seen: set[str] = set()
        repeated = characters = 0
        for part in parts:
            if part in seen:
                repeated += 1
                characters += len(part)
            seen.add(part)
        result[name] = repeated / max(1, len(parts))
        result[f"characters in {name}"] = characters / max(1, len(text))
    words = _WORD.findall(text)
    numbers: dict[str, int] = {}
    ids = np.asarray([numbers.setdefault(word, len(numbers)) + 1 for word in words], np.uint64)
    sizes = np.asarray([len(word) for word in words], np.int64)
    total = max(1, int(sizes.sum()))
    for size in range(2, 11):
        if len(words) < size:
            share = 0.0
        elif size <= 4:
            share = _most_frequent(_grams(ids, size), sizes, size) / total
        else:
            share = _repeated(_grams(ids, size), sizes, size) / total
        result[f"top {size}-gram" if size <= 4 else f"{size}-grams"] = share
    return result


def _grams(ids: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """A hash of the words at i, ..., i + size - 1, for every i."""
    count = len(ids) - size + 1
    result = np.zeros(count, np.uint64)
    for offset in range(size):
        result = result * _FACTOR + ids[offset : offset + count]
        result ^= result >> np.uint64(29)
    return result


def _most_frequent(grams: NDArray[np.uint64], sizes: NDArray[np.int64], size: int) -> int:
    """Characters in all occurrences of the most frequent n-gram; 0 if none occurs twice."""
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    best = int(counts.argmax())
    if counts[best] < 2:
        return 0
    return int(counts[best] * sizes[first[best] : first[best] + size].sum())


def _repeated(grams: NDArray[np.uint64], sizes: NDArray[np.int64], size: int) -> int:
    """Characters of the words in n-grams that occur before."""
    again = np.ones(len(grams), np.int64)
    again[np.unique(grams, return_index=True)[1]] = 0
    inside = np.convolve(again, np.ones(size, np.int64)) > 0
    return int(sizes[inside].sum())
