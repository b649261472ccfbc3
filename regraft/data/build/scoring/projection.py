"""Documents as points of a plane: similar texts are near each other.

`hashed_vectors` needs no model: TF-IDF of hashed character n-grams under a random projection, which
keeps products of vectors up to about 1 / sqrt(dimensions) ("Feature Hashing for Large Scale
Multitask Learning", arXiv 0902.2206; Achlioptas, "Database-friendly random projections", 2003).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from regraft.data.build.scoring.embedding import Vectors, normalise

_GRAM = 5  # characters
_BITS = 17  # of a hash
_DIMENSIONS = 128
_COMPONENTS = 50  # of the vectors that t-SNE reads
_FEWEST = 200  # different documents for t-SNE
_PERPLEXITY = 30


def hashed_vectors(texts: Sequence[str]) -> Vectors:
    """Vectors [texts, 128] of length 1 (0 for a text of less than five characters)."""
    counted = [np.unique(_grams(text), return_counts=True) for text in texts]
    seen = np.zeros(1 << _BITS, np.int64)
    for grams, _ in counted:
        seen[grams] += 1
    rarity = np.log((1 + len(texts)) / (1 + seen)).astype(np.float32)
    signs = np.random.default_rng(0).integers(0, 2, (1 << _BITS, _DIMENSIONS), np.int8) * 2 - 1
    vectors = np.zeros((len(texts), _DIMENSIONS), np.float32)
    for vector, (grams, counts) in zip(vectors, counted, strict=True):
        weights = (1 + np.log(counts.astype(np.float32))) * rarity[grams]
        vector[:] = weights @ signs[grams].astype(np.float32)
    return normalise(vectors)


def to_plane(vectors: Vectors) -> tuple[NDArray[np.float32], str]:
    """(points [n, 2], name of the method): t-SNE (van der Maaten and Hinton, JMLR 9, 2008) of 200
    different vectors or more where scikit-learn is installed, else the first two principal
    components. (Of equal vectors alone scikit-learn 1.9 computes NaN and crashes.)"""
    centred = vectors - vectors.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    components = (left * sizes)[:, :_COMPONENTS]
    if len(np.unique(vectors, axis=0)) >= _FEWEST:
        try:
            from sklearn.manifold import TSNE
            from threadpoolctl import threadpool_limits
        except ImportError:
            pass
        else:
            with threadpool_limits(1):  # sums of several threads differ from run to run
                method = TSNE(
                    perplexity=_PERPLEXITY, init="pca", max_iter=500, random_state=0, n_jobs=1
                )
                return np.asarray(method.fit_transform(components), np.float32), "t-SNE"
    points = np.zeros((len(vectors), 2), np.float32)
    points[:, : components.shape[1]] = components[:, :2]
    return points, "principal components"


def _grams(text: str) -> NDArray[np.int64]:
    """The hash of every n-gram of characters, in lower case."""
    codes = np.frombuffer(text.lower().encode("utf-32-le"), np.uint32).astype(np.uint64)
    count = max(0, len(codes) - _GRAM + 1)
    hashes = np.zeros(count, np.uint64)
    for at in range(_GRAM):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[at : at + count]
    mixed = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(64 - _BITS)).astype(np.int64)
