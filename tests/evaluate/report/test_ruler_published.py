"""Published scores stand beside ours when all of RULER was run, and only then."""

from __future__ import annotations

from evaluated import cell, record

from regraft.evaluate.report.ruler_published import LENGTHS, PUBLISHED, compare_with_published
from regraft.evaluate.result import EvaluationRecord
from regraft.evaluate.suites import RULER


def result(lengths: tuple[int, ...], score: float, *, leave_out: str = "") -> EvaluationRecord:
    cells = {
        task.name: {length: cell(score) for length in lengths}
        for task in RULER
        if task.name != leave_out
    }
    return record(cells={"graft": cells})


def test_ours_stand_above_the_published_by_length() -> None:
    head, ours, *published = compare_with_published(result((4096, 8192, 12288), 0.9))
    assert head == ["percent", "4k", "8k", "16k", "32k", "64k", "128k", "effective"]
    assert ours == ["graft, here", "90.0", "90.0", "", "", "", "", "12k"]
    assert len(published) == len(PUBLISHED)
    assert compare_with_published(result((4096,), 0.5))[1] == [
        "graft, here",
        "50.0",
        *[""] * 5,
        "none",
    ]


def test_nothing_is_shown_unless_all_thirteen_ran() -> None:
    assert len(RULER) == 13
    for task in RULER:
        assert compare_with_published(result((4096,), 0.9, leave_out=task.name)) == []
    apart = result((4096,), 0.9)
    apart.cells["graft"]["vt"] = {8192: cell(0.9)}
    assert compare_with_published(apart) == []
    assert compare_with_published(record()) == []


def test_a_published_effective_length_is_what_its_scores_say() -> None:
    for name, (scores, effective) in PUBLISHED.items():
        reached = [length for length, score in zip(LENGTHS, scores, strict=True) if score >= 85.6]
        assert f"{max(reached) // 1024}k" == effective, name
