"""What is said while a command works, and what is not."""

from __future__ import annotations

import pytest

from regraft import progress


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    progress.configure(quiet=False)
    return capsys


def test_a_hushed_command_gives_no_notes_but_its_warnings(
    said: pytest.CaptureFixture[str],
) -> None:
    with progress.hushed(), progress.hushed():
        progress.note("a detail")
    with progress.hushed():
        progress.note("a detail")
        progress.warn("a danger")
    progress.note("a fact")
    assert said.readouterr().err.splitlines() == ["warning: a danger", "a fact"]


def test_a_long_wait_is_told_also_where_notes_are_not(
    said: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", -1.0)
    with progress.hushed(), progress.bar("reading", total=4) as bar:
        bar.advance(1, "the first")
    assert "reading the first: 25%" in said.readouterr().err
