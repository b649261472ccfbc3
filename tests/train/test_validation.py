"""Validation: its NLL is that of transformers, and when it ends a stage."""

from __future__ import annotations

import pytest
from train_recipes import far_nll

from regraft.train.output import log as metrics
from regraft.train.validation import reason_to_stop

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_logged_nll_is_that_of_transformers(trained_model):
    logged = metrics.read_lines(trained_model / "watch.jsonl")[-1]["nll"]["128-256"]
    assert far_nll(trained_model, words=256) == pytest.approx(logged, abs=2e-5)


def results(*far: float) -> list[dict[str, float]]:
    """Validations by the NLL of their far positions."""
    return [{"0-512": 2.0, "512-1024": value} for value in far]


def test_a_stage_whose_far_positions_get_worse_is_ended_with_a_reason():
    assert reason_to_stop(results(3, 2.5, 2.4, 2.3), 0.1) is None
    assert reason_to_stop(results(2.5, 2.3, 2.6), 0.1) is None  # once is no trend
    assert "rose from 2.300 to 2.700" in str(reason_to_stop(results(2.5, 2.3, 2.6, 2.7), 0.1))
    assert "positions 512 to 1k" in str(reason_to_stop(results(2.5, 2.3, 2.6, 2.7), 0.1))
    assert "swings" in str(reason_to_stop(results(2.5, 2.2, 2.5, 2.2), 0.1))
    assert reason_to_stop(results(2.5, 2.45, 2.5, 2.45), 0.1) is None
