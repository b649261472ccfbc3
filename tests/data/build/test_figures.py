"""Histograms of the page have the shares of their values."""

from __future__ import annotations

import pytest

from regraft.data.build.report.figures import HEIGHT, LEFT, TOP, WIDTH, histogram
from regraft.data.build.statistics import Histogram


def _of(*values: float) -> Histogram:
    result = Histogram()
    for value in values:
        result.add(value)
    return result


def test_bars_are_shares_of_the_number_or_of_the_sum():
    values = _of(*[10] * 6, *[90] * 2)
    by_number = histogram("t", {"a": values}, "")
    assert [bar.text for bar in by_number.bars] == [
        "a: 75.0% from 10 to 12.7", "a: 25.0% from 87.3 to 90"
    ]  # fmt: skip
    by_sum = histogram("t", {"a": values}, "", weighted=True)
    assert [bar.text.split(" from")[0] for bar in by_sum.bars] == ["a: 25.0%", "a: 75.0%"]
    assert by_sum.ticks[2][1] == "30"  # logarithmic: the middle of 10 and 90
    highest = max(by_sum.bars, key=lambda bar: bar.height)
    assert (highest.height, highest.y) == (HEIGHT, TOP)
    assert all(LEFT <= bar.x <= LEFT + WIDTH for bar in by_sum.bars)


@pytest.mark.parametrize("values", [[], [0.0], [3.0, 3.0], [-1.0, 0.0, 2.0]])
def test_few_and_equal_values_have_a_figure(values):
    bars = histogram("t", {"a": _of(*values), "b": _of()}, "").bars
    assert len(bars) == len(set(values))
