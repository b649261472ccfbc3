"""Factors of longrope: the formula at its critical pair, and a search that lowers its score."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from regraft.rope import ContextSpec, inverse_frequencies
from regraft.rope.longrope import Candidate, critical_pair, long_factors, search_factors

LLAMA = (64, 5e5, 8192, 131072)  # pairs, theta, trained and target length


def test_the_critical_pair_is_the_first_that_makes_no_full_turn():
    pairs, theta, trained, _ = LLAMA
    spec = ContextSpec({"rope_type": "default", "rope_theta": theta}, trained)
    wavelengths = 2 * math.pi / inverse_frequencies(spec, 2 * pairs)[0]
    critical = critical_pair(pairs, theta, trained)
    assert wavelengths[critical - 1] < trained <= wavelengths[critical]
    assert critical_pair(16, 1e4, 5) == 1  # no pair makes a turn in five tokens


def test_the_formula_is_the_ratio_from_the_critical_pair_on_and_a_power_before():
    pairs, theta, trained, _ = LLAMA
    factors, critical = long_factors(*LLAMA), critical_pair(pairs, theta, trained)
    assert factors[critical:] == [16.0] * (pairs - critical)
    assert factors[0] == 1.0
    before = [math.log(factor) for factor in factors[:critical]]
    steps = [b - a for a, b in pairwise(before)]
    assert steps == pytest.approx([math.log(16) / critical] * (critical - 1))
    assert long_factors(pairs, theta, trained, trained) == [1.0] * pairs


def distance(factors: list[float]) -> float:
    """Of factors to some that the formula does not give."""
    best = Candidate(5, (9.0, 9.5, 10.0, 11.0, 12.0, 12.5, 13.0, 14.0, 15.0, 15.5, 16.0)).factors
    return sum(abs(math.log(a / b)) for a, b in zip(factors, best, strict=True))


def test_the_search_is_better_than_the_formula_and_repeats():
    shape = (16, 70.0, 64, 512)
    tried: list[list[float]] = []

    def score(factors: list[float]) -> float:
        tried.append(factors)
        return distance(factors)

    factors, value = search_factors(score, *shape, budget=100, seed=3)
    assert tried[0] == long_factors(*shape)
    assert value == distance(factors) == min(map(distance, tried))
    assert value < 0.7 * distance(tried[0])
    assert len(tried) == 100
    for candidate in tried:
        assert candidate == sorted(candidate)
        assert candidate[0] == 1.0
        assert candidate[-1] <= 16.0
    again = search_factors(distance, *shape, budget=100, seed=3)
    assert again == (factors, value)
