"""A mix has the tokens of its sources in the shares that were asked for."""

from __future__ import annotations

import random

import pytest
from built import documents, run_step

from regraft.data.build.steps.mix import Mix
from regraft.errors import InputError


def _sources():
    rng = random.Random(0)
    sizes = {"books": (20, 900), "short": (400, 60), "other": (5, 50)}
    return [
        document
        for name, (count, most) in sizes.items()
        for document in documents(
            *("x" * rng.randint(most // 2, most) for _ in range(count)), source=name
        )
    ]


def _tokens(items, source):
    return sum(len(one.text) for one in items if one.source == source)


def test_shares_are_those_of_the_weights():
    items = _sources()
    passed, statistics = run_step(Mix(weights={"books": 3, "short": 1}), items)
    assert _tokens(passed, "books") == _tokens(items, "books")  # the scarce one is whole
    assert abs(3 * _tokens(passed, "short") - _tokens(passed, "books")) <= 3 * 30
    assert statistics.dropped["no weight"] == 5
    assert _tokens(passed, "other") == 0


def test_a_total_and_repeats():
    items = _sources()
    step = Mix(weights={"books": 1, "short": 1}, tokens=40000, repeat=3)
    passed, _ = run_step(step, items)
    assert abs(_tokens(passed, "books") - 20000) <= 450
    assert abs(_tokens(passed, "short") - 20000) <= 30
    assert len({(one.source, one.id) for one in passed}) == len(passed)


def test_a_source_that_is_too_small_is_named():
    with pytest.raises(InputError, match=r"copies of 'books'.*raise `repeat`, or ask for at most"):
        run_step(Mix(weights={"books": 1, "short": 1}, tokens=10**6), _sources())
    with pytest.raises(InputError, match=r"'bools' is no source with text .did you mean books"):
        run_step(Mix(weights={"bools": 1}), _sources())
