"""Effective length by both thresholds, and LongScore."""

from __future__ import annotations

import pytest

from regraft.evaluate.report.transfer import effective_length, long_score
from regraft.evaluate.result import EffectiveLength


def test_effective_length_holds_at_all_shorter_lengths_too() -> None:
    assert effective_length({64: 0.9, 128: 0.7, 256: 0.99}) == EffectiveLength(ruler=64, own=64)
    assert effective_length({64: 0.6, 128: 0.55, 256: 0.4}) == EffectiveLength(ruler=None, own=128)
    assert effective_length({64: 1.0, 128: 1.0}) == EffectiveLength(ruler=128, own=128)
    assert effective_length({64: 0.0, 128: 0.0}) == EffectiveLength(ruler=None, own=None)
    assert effective_length({64: 0.06, 128: 0.06}, 0.03) == EffectiveLength(ruler=None, own=None)
    assert effective_length({64: 0.07, 128: 0.06}, 0.03) == EffectiveLength(ruler=None, own=128)


def test_long_score_is_relative_to_the_mean_at_the_short_lengths() -> None:
    def scores(right: int) -> list[float]:
        return [1.0] * right + [0.0] * (100 - right)

    by_length = {1024: scores(90), 2048: scores(80), 3072: scores(70), 4096: scores(60)}
    found = long_score(by_length | {16384: scores(100)}, dict.fromkeys([*by_length, 16384]))
    assert list(found) == [4096, 16384]
    near, far = found[4096], found[16384]
    assert near is not None
    assert far is not None
    assert near.value == pytest.approx((0.6 - 0.8) / 0.8)
    assert far.value == pytest.approx((1 - 0.8) / 0.8)
    assert near.low < near.value < near.high < 0 < far.low < far.value <= far.high
    assert long_score({64: scores(0), 256: scores(50)}, {64: None, 256: None}) == {256: None}
    assert long_score({64: scores(50), 128: scores(50)}, {64: None, 128: None}) == {}


def test_every_short_length_has_the_same_weight_in_the_base_and_in_its_interval() -> None:
    many, few, far = [1.0] * 200, [1.0, 0.0] * 10, [1.0, 0.0] * 100
    result = long_score({64: many, 128: few, 512: far}, dict.fromkeys((64, 128, 512)))[512]
    again = long_score({64: few, 128: many, 512: far}, dict.fromkeys((64, 128, 512)))[512]
    assert result == again
    assert result is not None
    assert result.value == pytest.approx(0.5 / 0.75 - 1)
    assert result.low < result.value < result.high
    # as sure as the 20 items allow, whose Wilson interval is 0.30 to 0.70: 0.65 to 0.85 of the base
    assert result.high > 0.5 / 0.65 - 1
    assert result.low < 0.5 / 0.85 - 1


def test_shared_texts_widen_the_base() -> None:
    scores, texts = [1.0] * 56 + [0.0] * 24, [number // 8 for number in range(80)]
    by_length = dict.fromkeys((64, 128, 256), scores)
    shared = long_score(by_length, {64: texts, 128: texts, 256: None})[256]
    alone = long_score(by_length, dict.fromkeys(by_length))[256]
    assert shared is not None
    assert alone is not None
    assert shared.low < alone.low < alone.value == shared.value == 0 < alone.high < shared.high
