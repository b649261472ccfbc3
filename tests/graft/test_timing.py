"""The time left of a job."""

from __future__ import annotations

import pytest

from regraft.graft import timing
from regraft.graft.timing import Timing


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(timing.time, "monotonic", lambda: self.now)

    def run(self, job: Timing, name: str, seconds: float) -> None:
        job.start(name)
        self.now += seconds
        assert job.finish() == pytest.approx(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_before_a_stage_is_done_the_estimates_are_the_time_left(clock: Clock) -> None:
    job = Timing({"extract/a": 100.0, "graft/a": 20.0, "card/a": 0.0})
    assert job.left() == (120, True)
    job.start("extract/a")
    clock.now += 30
    assert job.left() == (90, True)
    clock.now += 100  # longer than estimated
    assert job.left() == (20, True)


def test_finished_stages_correct_those_of_their_kind_and_less_so_all_others(clock: Clock) -> None:
    job = Timing({"graft/a": 10.0, "graft/b": 20.0, "evaluate/b": 100.0})
    clock.run(job, "graft/a", 30)
    seconds, complete = job.left()
    # graft: three times its estimate; evaluate: (30 + 30) / (10 + 30) of it
    assert seconds == pytest.approx(3 * 20 + 1.5 * 100)
    assert complete


def test_a_stage_without_an_estimate_takes_as_long_as_others_of_its_kind(clock: Clock) -> None:
    job = Timing({"graft/a": None, "graft/b": None, "evaluate/b": 10.0})
    assert job.left() == (10, False)
    assert "more than 10 s left" in job.describe()
    clock.run(job, "graft/a", 30)
    assert job.left() == (40, True)


def test_stages_that_are_left_out_take_no_time(clock: Clock) -> None:
    job = Timing({"extract/a": 5.0, "graft/a": 10.0, "graft/b": 20.0})
    job.leave_out("extract/a")
    job.start("graft/a")
    job.leave_out("graft/a")  # it failed
    assert job.left() == (20, True)


def test_the_line_names_the_stage_and_what_follows(clock: Clock) -> None:
    job = Timing(dict.fromkeys(["extract", "graft/a", "compare/a", "evaluate/a", "card/a"], 60.0))
    job.start("extract")
    assert job.describe() == (
        "stage 1 of 5, extract; then graft/a, compare/a and 2 more; about 5.0 min left in all"
    )
