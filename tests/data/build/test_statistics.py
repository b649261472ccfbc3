"""Statistics of parts add up to those of the whole."""

from __future__ import annotations

import random

import pytest

from regraft.data.build.document import Document
from regraft.data.build.statistics import Histogram, Statistics, class_of


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.25, "0.25"), (0.2599, "0.25"), (1, "1"), (1299.9, "1200"), (-0.31, "-0.31"),
     (0.3, "0.3"), (99.9, "99"), (100, "100")],
)  # fmt: skip
def test_a_class_has_two_significant_digits(value, expected):
    assert class_of(value) == expected


def test_parts_add_up_to_the_whole():
    rng = random.Random(0)
    whole, parts = Statistics("s"), [Statistics("s") for _ in range(3)]
    for number in range(60):
        value = rng.randint(-8, 64) / 8  # sums of eighths are exact in any order
        for one in (whole, parts[number % 3]):
            document = Document("x" * number, str(number), "a", tokens=number)
            one.into.add(document)
            one.score("q", value)
            one.count("cut", number)
            one.drop("short")
    total = Statistics("s")
    for part in parts:
        total.include(part)
    assert total == whole
    assert total.scores["q"].number == 60
    assert sum(total.scores["q"].counts.values()) == 60


def test_a_score_must_be_a_number():
    with pytest.raises(ValueError, match="nan"):
        Histogram().add(float("nan"))
