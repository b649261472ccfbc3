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


def test_the_short_lengths_of_shared_texts_have_texts_of_their_own() -> None:
    scores, texts = [1.0, 0.0, 1.0, 1.0] * 20, [number // 8 for number in range(80)]
    by_length = dict.fromkeys((64, 128, 256), scores)
    together = long_score(by_length, dict.fromkeys(by_length, texts))[256]
    numbered = [*texts, *(10 + number for number in texts)]
    alone = long_score({64: scores * 2, 256: scores}, {64: numbered, 256: texts})[256]
    assert together == alone
    assert together is not None
    assert together.low < together.value == 0 < together.high
