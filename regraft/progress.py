"""One console and one progress bar for every command: on stderr, silent under --quiet and --json.

A library caller gets silence unless it asks with `configure(quiet=False)`, as the commands do.
Where stderr is a file, a line every fifteen seconds stands for the bar.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_LINE_EVERY = 15.0  # seconds
_quiet = True
_console: Console | None = None
_drawn = False  # a bar is on the screen
_hushed = False


def configure(*, quiet: bool) -> None:
    """Say whether progress, notes and warnings are shown (library default: not shown)."""
    global _quiet
    _quiet = quiet


def console() -> Console:
    """The rich console on stderr, quiet when configured so."""
    global _console
    if _console is None or _console.quiet != _quiet:
        from rich.console import Console

        _console = Console(stderr=True, quiet=_quiet, highlight=False)
    return _console


def note(text: str) -> None:
    """One line of information."""
    if not _hushed:
        _say(text)


@contextmanager
def hushed() -> Iterator[None]:
    """Without notes, for a command that runs others; bars and warnings are shown."""
    global _hushed
    before, _hushed = _hushed, True
    try:
        yield
    finally:
        _hushed = before


def _say(text: str) -> None:
    console().print(text, markup=False, style="dim")


def warn(text: str) -> None:
    """One line the user should not miss; also raised as a Python warning for library callers."""
    if _quiet:
        import warnings

        warnings.warn(text, stacklevel=3)
    console().print(f"warning: {text}", markup=False, style="yellow")


class Bar:
    """A progress bar over a known amount of work (bytes, steps), with rate and time left."""

    def __init__(self, description: str, total: float, progress: Progress | None) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total) if progress else None
        self._description, self._total, self._done, self._skipped = description, total, 0.0, 0.0
        self._began = self._said = time.monotonic()

    @property
    def left(self) -> float | None:
        """Seconds to the end at the rate so far; None before anything is done."""
        worked = self._done - self._skipped
        spent = time.monotonic() - self._began
        return spent * (self._total - self._done) / worked if worked > 0 else None

    def skip(self, amount: float) -> None:
        """Count `amount` as done, or as to be done again where negative, though nobody did it."""
        self._done += amount
        self._skipped += amount
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=amount)

    def advance(self, amount: float = 1, text: str | None = None) -> None:
        """Count `amount` more as done; `text` is shown beside the description."""
        self._done += amount
        shown = self._description if text is None else f"{self._description} {text}"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=amount, description=shown)
        elif time.monotonic() - self._said > _LINE_EVERY and self._done:
            self._said = time.monotonic()
            left = "" if self.left is None else f", {self.left:.0f} s left"
            _say(f"{shown}: {self._done / self._total:.0%}{left}")


@contextmanager
def bar(description: str, total: float, *, unit: str = "") -> Iterator[Bar]:
    """Show a bar with an ETA while the block runs; one inside another's block is not drawn.
    `unit='bytes'` shows sizes and MB/s."""
    global _drawn
    if _quiet or _drawn or not console().is_terminal:
        yield Bar(description, total, None)
        return
    from rich import progress as rich_progress

    amount: list[rich_progress.ProgressColumn] = [rich_progress.TaskProgressColumn()]
    if unit == "bytes":
        amount = [rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn()]
    with rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=28),
        *amount,
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("eta"),
        rich_progress.TimeRemainingColumn(),
        console=console(),
        transient=True,
    ) as progress:
        _drawn = True
        try:
            yield Bar(description, total, progress)
        finally:
            _drawn = False


@contextmanager
def without_others() -> Iterator[None]:
    """Without transformers' own progress bars, which would run through ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
