"""Means over comparable tasks, transfer and retention of each role."""

from __future__ import annotations

import pytest
from evaluated import answers, record

from regraft.evaluate.report.aggregate import summarise, transfer_ratios
from regraft.evaluate.report.tables import tables
from regraft.evaluate.report.text import notes
from regraft.evaluate.result import EffectiveLength
from regraft.evaluate.suites import TASKS


def test_transfer_and_retention_are_of_the_roles_they_name() -> None:
    right = {"recipient": 20, "theta only": 40, "donor": 80, "graft": 50, "recovered": 70}
    tasks = [TASKS[name] for name in ("notes", "vt", "shout")]
    found = {
        (role, task.name, length): answers(count)
        for role, count in right.items()
        for task in tasks
        for length in (64, 128)
    }
    result = transfer_ratios(found, tasks, list(right), own_length=64)
    short, far = result["notes"][64], result["all"][128]
    expected = {
        "transfer graft": 30 / 60, "weight transfer graft": 10 / 40,
        "transfer recovered": 50 / 60, "weight transfer recovered": 30 / 40,
    }  # fmt: skip
    for name, value in expected.items():
        assert short[name].value == pytest.approx(value)
        assert far[name].value == pytest.approx(value)
        assert short[name].low < value < short[name].high
        assert far[name].high - far[name].low < short[name].high - short[name].low
    assert short["retention graft"].value == pytest.approx(2.5)
    assert not any(name.startswith("retention") for name in far)
    assert list(result["shout"][64]) == ["retention graft", "retention recovered"]


def test_means_are_over_tasks_that_fit_in_every_length() -> None:
    lines, low = answers(4, 4), answers(0, 4)
    tasks = [TASKS[name] for name in ("notes", "shout", "cwe", "vt")]
    found = {
        ("m", "notes", 64): lines, ("m", "notes", 128): low, ("m", "shout", 64): low,
        ("m", "shout", 128): low, ("m", "vt", 64): lines, ("m", "vt", 128): lines,
        ("m", "cwe", 128): low,
    }  # fmt: skip
    result = summarise(found, tasks, ["m"])
    assert result.overall_tasks == ["notes", "vt"]
    assert result.overall["m"] == {64: 1, 128: 0.5}
    assert result.effective_length["m"] == EffectiveLength(ruler=64, own=64)
    assert result.long_score["m"] == {}


def test_the_long_score_stands_beside_the_effective_length() -> None:
    tasks = [TASKS[name] for name in ("notes", "vt")]
    right = {64: 80, 128: 60, 256: 35}
    found = {("m", task.name, n): answers(right[n]) for task in tasks for n in right}
    summary = summarise(found, tasks, ["m"])
    score = summary.long_score["m"][256]
    assert score is not None
    assert score.value == pytest.approx(0.35 / 0.7 - 1)
    result = record(**vars(summary))
    (before, _), (title, rows) = tables(result)[1:3]
    assert before == "Effective length in tokens"
    assert title == "LongScore: change relative to short lengths, by length in tokens"
    assert rows[0] == ["model", "256"]
    assert rows[1][1].startswith("-0.50 [")
    assert any("the short lengths (64, 128) as base" in note for note in notes(result))
