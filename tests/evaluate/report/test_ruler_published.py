"""Published scores stand beside ours when all of RULER was run, and only then."""

from __future__ import annotations

from typing import Any

from regraft.evaluate.report.ruler_published import LENGTHS, PUBLISHED, beside
from regraft.evaluate.suites import RULER


def result(lengths: tuple[int, ...], score: float, *, leave_out: str = "") -> dict[str, Any]:
    cells = {
        task.name: {str(length): {"score": score} for length in lengths}
        for task in RULER
        if task.name != leave_out
    }
    return {"cells": {"graft": cells}}


def test_ours_stand_above_the_published_by_length() -> None:
    head, ours, *published = beside(result((4096, 8192, 12288), 0.9))
    assert head == ["percent", "4k", "8k", "16k", "32k", "64k", "128k", "effective"]
    assert ours == ["graft, here", "90.0", "90.0", "", "", "", "", "12k"]
    assert len(published) == len(PUBLISHED)
    assert beside(result((4096,), 0.5))[1] == ["graft, here", "50.0", *[""] * 5, "none"]


def test_nothing_is_shown_unless_all_thirteen_ran() -> None:
    assert len(RULER) == 13
    for task in RULER:
        assert beside(result((4096,), 0.9, leave_out=task.name)) == []
    apart = result((4096,), 0.9)
    apart["cells"]["graft"]["vt"] = {"8192": {"score": 0.9}}
    assert beside(apart) == []
    assert beside({"cells": {}}) == []


def test_a_published_effective_length_is_what_its_scores_say() -> None:
    for name, (scores, effective) in PUBLISHED.items():
        reached = [length for length, score in zip(LENGTHS, scores, strict=True) if score >= 85.6]
        assert f"{max(reached) // 1024}k" == effective, name
