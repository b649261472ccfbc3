"""Effective length by both thresholds."""

from __future__ import annotations

from regraft.evaluate.report.transfer import effective_length
from regraft.evaluate.result import EffectiveLength


def test_effective_length_holds_at_all_shorter_lengths_too() -> None:
    assert effective_length({64: 0.9, 128: 0.7, 256: 0.99}) == EffectiveLength(ruler=64, own=64)
    assert effective_length({64: 0.6, 128: 0.55, 256: 0.4}) == EffectiveLength(ruler=None, own=128)
    assert effective_length({64: 1.0, 128: 1.0}) == EffectiveLength(ruler=128, own=128)
    assert effective_length({64: 0.0, 128: 0.0}) == EffectiveLength(ruler=None, own=None)
    assert effective_length({64: 0.06, 128: 0.06}, 0.03) == EffectiveLength(ruler=None, own=None)
    assert effective_length({64: 0.07, 128: 0.06}, 0.03) == EffectiveLength(ruler=None, own=128)
