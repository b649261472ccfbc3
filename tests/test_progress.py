"""What is said while a command works, and what is not."""

from __future__ import annotations

import io
import re
import threading

import pytest
from rich.console import Console

from regraft import progress


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    progress.configure(quiet=False)
    return capsys


def test_a_command_with_hidden_notes_gives_its_warnings(
    said: pytest.CaptureFixture[str],
) -> None:
    with progress.hide_notes(), progress.hide_notes():
        progress.note("a detail")
    with progress.hide_notes():
        progress.note("a detail")
        progress.warn("a danger")
    progress.note("a fact")
    assert said.readouterr().err.splitlines() == ["warning: a danger", "a fact"]


def test_a_warning_is_given_once_in_a_command_that_runs_others(
    said: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        with progress.warn_once():
            for text in ("a danger", "another", "a danger"):
                progress.warn(text)
    progress.warn("another")
    progress.warn("another")
    lines = ["warning: a danger", "warning: another"]
    assert said.readouterr().err.splitlines() == [*lines, *lines, lines[1], lines[1]]


def test_a_long_wait_is_told_also_where_notes_are_not(
    said: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = threading.Event()
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.001)
    monkeypatch.setattr(progress, "_print", lambda text, _: lines.append(text) or printed.set())
    lines: list[str] = []
    with progress.hide_notes(), progress.bar("reading", total=4) as bar:
        bar.advance(1, "the first")
        printed.clear()
        assert printed.wait(60)
        with progress.stage("within another"):
            pass
    assert re.fullmatch(r"reading the first: 25%, \d+ s left", lines[-1])
    with progress.stage("Publishing"):
        printed.clear()
        assert printed.wait(60)
    assert re.fullmatch(r"Publishing: \d+ s so far", lines[-1])


def test_the_progress_of_the_whole_is_in_the_lines_of_its_parts(
    said: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed, lines = threading.Event(), []
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.001)
    monkeypatch.setattr(progress, "_print", lambda text, _: lines.append(text) or printed.set())
    with progress.whole(lambda: "stage 1 of 2"), progress.stage("Publishing"):
        assert printed.wait(60)
    assert re.fullmatch(r"Publishing: \d+ s so far; stage 1 of 2", lines[-1])


def test_a_terminal_shows_the_bar_with_the_whole_below_it(
    said: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=90, highlight=False)
    monkeypatch.setattr(progress, "console", lambda: terminal)
    with progress.whole(lambda: "stage 1 of 2"), progress.bar("Merging", total=10) as bar:
        bar.advance(5)
        progress.note("a fact")  # above both, which are drawn again
    assert isinstance(terminal.file, io.StringIO)
    plain = re.sub(r"\x1b\[[\d?;]*[a-zA-Z]", "", terminal.file.getvalue())
    assert re.search(r"Merging .* 50%.*\n.*stage 1 of 2", plain)
    assert "a fact\n" in plain


def test_time_left_follows_from_the_work_of_this_run(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("regraft.progress.time.monotonic", lambda: now[0])
    with progress.bar("training", total=1000) as bar:
        bar.skip(500)  # by a run before
        assert bar.left is None
        now[0] += 10
        bar.advance(100)
        assert bar.left == pytest.approx(40)
        bar.skip(-100)  # to be done again
        assert bar.left == pytest.approx(50)


def test_bars_inside_a_part_move_it_by_their_share(said):
    with progress.bar("models", total=10) as bar:
        bar.advance(0, "the first")
        with bar.part(4):
            with progress.bar("batches", total=8) as inner:
                inner.advance(2)
                with progress.bar("aside", total=2) as aside:  # in no part of the inner one
                    aside.advance(2)
                assert bar.line().startswith("models the first: 10%")
                with inner.part(4):
                    with progress.bar("tokens", total=2) as innermost:
                        innermost.advance(1)
                    with progress.bar("tokens", total=2) as again:  # the part is full at its end
                        again.advance(2)
                    assert bar.line().startswith("models the first: 30%")
                    with progress.bar("tokens", total=2) as late:
                        late.advance(2)
                    assert bar.line().startswith("models the first: 30%")
                assert bar.line().startswith("models the first: 30%")
            assert bar.line().startswith("models the first: 30%")
        assert bar.line().startswith("models the first: 40%")
        with progress.bar("unrelated", total=2) as other:  # not in a part
            other.advance(2)
        assert bar.line().startswith("models the first: 40%")
