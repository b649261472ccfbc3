"""Intervals and ratios against tables, known distributions and direct formulas."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.evaluate.statistics import (
    Ratio,
    average,
    mean_interval,
    quotient,
    ratio,
    score_interval,
    standard_error,
)


def test_ratios_are_of_means_with_paired_intervals_and_none_of_noise() -> None:
    low, high = [0.0] * 100, [1.0] * 90 + [0.0] * 10
    half = [1.0] * 45 + [0.0] * 55
    result = ratio(half, low, high, low)
    assert result is not None
    assert result.value == pytest.approx(0.5)
    assert 0.35 < result.low < 0.45 < 0.55 < result.high < 0.65
    same = ratio(high, low, high, low)
    # alike item by item: up to 3.7% of all items may differ, of a mean of 0.9
    margin = 1.96**2 / (100 + 1.96**2) / 0.9
    assert same == Ratio(1, pytest.approx(1 - margin), pytest.approx(1 + margin))
    few = ratio([1.0] * 5, None, [1.0] * 5, None)
    assert few is not None
    assert few.low < 0.6 < 1.4 < few.high  # five items say little
    five = ratio([1.0, 0, 1, 1, 0], [0.0] * 5, [1.0] * 5, [0.0] * 5)
    assert five is not None
    assert five.low < 0.15
    assert ratio(half, low, [1.0, *low[1:]], low) is None
    assert ratio(half, half, half, half) is None
    assert ratio([1.0], None, [1.0], None) is None
    assert score_interval([1.0] * 30) == (pytest.approx(30 / (30 + 1.96**2)), 1)
    assert score_interval([0.0]) == (0, pytest.approx(1.96**2 / (1 + 1.96**2)))
    low, high = score_interval([1, 1, 1, 1, 0])
    assert (low, high) == (
        pytest.approx(0.3755, abs=1e-3),
        pytest.approx(0.9638, abs=1e-3),
    )  # Wilson's, tables
    assert score_interval([0.5] * 5)[0] < 0.2
    assert mean_interval([2.0]) is None
    # Student's t of 4 degrees of freedom is 2.776
    low, high = mean_interval([1.0, 2, 3, 4, 5]) or (0, 0)
    assert high - 3 == pytest.approx(3 - low) == pytest.approx(2.776 * (2.5 / 5) ** 0.5, rel=0.02)
    wide, narrow = score_interval([0, 1] * 10), score_interval([0, 1] * 1000)
    assert wide[1] - wide[0] > narrow[1] - narrow[0]


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        low, high = score_interval((rng.random(60) < 0.6).astype(float).tolist())
        hits += low <= 0.6 <= high
    assert 85 <= hits <= 100


def test_the_quotient_of_independent_means_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        top = (rng.random(50) < 0.6).astype(float).tolist()
        bottom = (rng.random(100) < 0.8).astype(float).tolist()
        of = quotient(np.mean(top), score_interval(top), np.mean(bottom), score_interval(bottom))
        assert of is not None
        hits += of.low <= 0.75 <= of.high
    assert 180 <= hits <= 200
    assert quotient(0.5, (0.4, 0.6), 0.0, (0.0, 0.1)) is None


def test_scores_of_one_text_are_not_independent() -> None:
    """Texts that are right or wrong as a whole count as one score each."""
    rng, texts = np.random.default_rng(1), np.repeat(range(40), 8).tolist()
    naive = clustered = 0
    for _ in range(20):
        scores = np.repeat((rng.random(40) < 0.6).astype(float), 8).tolist()
        low, high = score_interval(scores)
        naive += low <= 0.6 <= high
        low, high = score_interval(scores, texts=texts)
        clustered += low <= 0.6 <= high
    # covered 95% of the time, and without the texts 51%: 1.96 / sqrt(8) standard errors
    assert naive < 16 < clustered
    few = score_interval([1.0, 1, 0, 0], texts=[0, 0, 1, 1])
    assert few == (0, 1)
    assert score_interval([1.0] * 8, texts=[0] * 4 + [1] * 4) == score_interval([1.0] * 2)
    assert score_interval([1.0, 0], texts=[0, 0]) == score_interval([0.5])


def test_the_error_of_texts_is_that_of_their_means() -> None:
    values, texts = [1.0, 2, 4, 4, 3, 9], [0, 0, 1, 1, 2, 2]
    means = [1.5, 4.0, 6.0]
    assert standard_error(values, texts) == pytest.approx(standard_error(means))
    assert mean_interval(values, texts) == pytest.approx(mean_interval(means))
    assert standard_error(values, [0] * 6) == np.inf
    alone = list(range(6))  # each has its own
    assert standard_error(values, alone) == pytest.approx(standard_error(values))


def test_a_ratio_over_texts_is_wider_than_over_questions() -> None:
    texts = np.repeat(range(30), 10).tolist()
    over = [1.0] * 150 + [0.0] * 150  # half of the texts
    narrow = ratio(over, None, [1.0] * 300, None)
    wide = ratio(over, None, [1.0] * 300, None, texts=texts)
    assert narrow
    assert wide
    assert narrow.value == wide.value == 0.5
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)
    assert ratio(over, None, over, None, texts=[0] * 300) is None


def test_the_interval_of_a_mean_of_means_is_that_of_their_errors() -> None:
    errors = np.array([0.1, 0.02, 0.05])
    means = [0.3, 0.5, 0.8]
    bounds = [(m - 1.96 * e, m + 1.96 * e) for m, e in zip(means, errors, strict=True)]
    margin = 1.96 * np.sqrt((errors**2).sum()) / 3
    assert average(means, bounds) == pytest.approx((1.6 / 3 - margin, 1.6 / 3 + margin))
    low, high = average([0.9, 0.9], [(0.6, 0.96), (0.6, 0.96)])  # the shape of Wilson's stays
    assert (0.9 - low) / (high - 0.9) == pytest.approx(5)
