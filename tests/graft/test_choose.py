"""The choice among ranks and scales."""

from __future__ import annotations

import pytest

from regraft.evaluate.statistics import Ratio
from regraft.graft.choose import PointRecord, choose


def point(
    rank: int, transfer: float | None, retention: float | None, score: float = 0.5
) -> PointRecord:
    def ratio(value: float | None) -> Ratio | None:
        return None if value is None else Ratio(value, value - 0.1, value + 0.1)

    return PointRecord(
        rank=str(rank), scale=1.0, score=score, transfer=ratio(transfer), retention=ratio(retention)
    )


@pytest.mark.parametrize(
    ("points", "chosen", "words"),
    [
        ([(4, 0.5, 1.0), (8, 0.8, 0.96), (16, 0.9, 0.9)], 1,
         "rank 8, scale 1: transfer 0.80 [0.70, 0.90] at 64k tokens, the most among the 2 of 3 "
         "points that retain at least 95% of the target's own scores."),
        ([(4, 0.8, 1.0), (8, 0.8, 1.0)], 0, "rank 4"),
        ([(4, 0.5, 0.8), (8, 0.9, 0.7)], 0,
         "rank 4, scale 1: no point retains 95% of the target's own scores, and this one retains "
         "the most, 0.80"),
        ([(4, 0.5, None), (8, 0.9, None)], 1, "retention is n/a"),
        ([(4, None, 1.0, 0.2), (8, None, 1.0, 0.3)], 1, "score 0.30 (transfer is n/a)"),
        ([(4, None, 1.0, 0.9), (8, 0.1, 1.0, 0.3)], 1, "transfer 0.10"),
    ],
)  # fmt: skip
def test_the_most_transfer_within_the_allowed_loss_is_chosen(points, chosen, words) -> None:
    record = choose([point(*values) for values in points], 64 * 1024, 0.05)
    assert record.chosen == chosen
    assert words in record.why
