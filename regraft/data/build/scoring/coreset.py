"""A subset of vectors that covers all of them: greedy k-centre.

"Active Learning for Convolutional Neural Networks: A Core-Set Approach" (arXiv 1708.00489): vectors
that are chosen already are centres; again and again the vector that is farthest from its nearest
centre becomes one. Its radius is at most twice the best one. Distance is 1 - cosine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def greatest_similarity(vectors: Vectors, others: Vectors) -> NDArray[np.float32]:
    """For every vector [n, d], its greatest product with one of `others` [m, d]. Holds n x m
    products."""
    return np.asarray((vectors @ others.T).max(1), dtype=np.float32)


def farthest_first(
    vectors: Vectors, similarity: NDArray[np.float32], sizes: NDArray[np.int64], budget: int
) -> list[tuple[int, float]]:
    """The chosen vectors in order, each with its distance to the nearest centre when it was chosen.

    vectors: [n, d] of length 1. similarity: of each to its nearest centre at the beginning. sizes:
    of each; vectors are chosen until their sizes add up to `budget` or more. Of equally far ones
    the first is chosen. Takes n x d products for each chosen vector, and no memory but 12 n bytes.
    """
    distance = 1 - similarity.astype(np.float32)
    chosen: list[tuple[int, float]] = []
    total = 0
    while total < budget and len(chosen) < len(vectors):
        at = int(distance.argmax())
        chosen.append((at, float(distance[at])))
        total += int(sizes[at])
        np.minimum(distance, 1 - vectors @ vectors[at], out=distance)
        distance[at] = -np.inf
    return chosen
