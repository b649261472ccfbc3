"""Greedy k-centre is the one of a direct search, and its radius is at most twice the best."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from regraft.data.build.scoring.coreset import farthest_first, greatest_similarity


def vectors(count, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_the_order_is_that_of_a_direct_search():
    points, base = vectors(40), vectors(5, seed=1)
    sizes = np.arange(1, 41)
    result = farthest_first(points, greatest_similarity(points, base), sizes, 150)
    centres, left, total = list(base), list(range(40)), 0
    for at, distance in result:
        away = {i: min(1 - float(points[i] @ centre) for centre in centres) for i in left}
        assert at == max(away, key=away.__getitem__)
        assert distance == pytest.approx(away[at], abs=1e-6)
        centres.append(points[at])
        left.remove(at)
        total += sizes[at]
    assert 150 <= total < 150 + 40


def test_the_radius_is_at_most_twice_the_best():
    points = vectors(9, seed=2)
    # the bound is of a metric: the length of the difference, whose square is 2 (1 - cosine)
    distances = np.linalg.norm(points[:, None] - points, axis=2)

    def radius(chosen):
        return distances[:, list(chosen)].min(1).max()

    first = points[:1]
    chosen = [0, *(at for at, _ in farthest_first(points, greatest_similarity(points, first),
                                                  np.ones(9, np.int64), 2))]  # fmt: skip
    best = min(radius(subset) for subset in combinations(range(9), 3))
    assert radius(chosen) <= 2 * best + 1e-6


def test_a_budget_larger_than_all_takes_all():
    points = vectors(6)
    chosen = farthest_first(points, np.zeros(6, np.float32), np.ones(6, np.int64), 99)
    assert sorted(at for at, _ in chosen) == list(range(6))
