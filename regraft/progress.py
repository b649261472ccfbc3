"""One console and one progress bar for every command: on stderr, silent under --quiet and --json.

Nothing is printed unless `configure(quiet=False)` was called, as the commands do. Where stderr is
not a terminal, a line every fifteen seconds replaces the bar, also while a single item takes
minutes. A command that runs others states the progress of the whole below their bars (`whole`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

_LINE_EVERY = 15.0  # seconds
_quiet = True
_console: Console | None = None
_active = False  # whether a bar is displayed; another one inside its block is not
_part: Callable[[float], None] | None = None  # moves the outer bar by a share of the current part
_notes_hidden = False
_warned: set[str] | None = None  # in a block that gives each warning once
_whole: Whole | None = None  # of a command that runs others


def configure(*, quiet: bool) -> None:
    """Set whether progress, notes and warnings are printed (by default they are not)."""
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
    """Print one line of information."""
    if not _notes_hidden:
        _print(text, "dim")


@contextmanager
def hide_notes() -> Iterator[None]:
    """Hide notes in the block, for a command that runs others, but not bars and warnings."""
    global _notes_hidden
    before, _notes_hidden = _notes_hidden, True
    try:
        yield
    finally:
        _notes_hidden = before


@contextmanager
def warn_once() -> Iterator[None]:
    """Give each warning of the block once, for a command that runs others several times."""
    global _warned
    before, _warned = _warned, set()
    try:
        yield
    finally:
        _warned = before


def warn(text: str) -> None:
    """Print a warning; where nothing is printed, it is a Python warning instead."""
    if _warned is not None:
        if text in _warned:
            return
        _warned.add(text)
    if _quiet:
        import warnings

        warnings.warn(text, stacklevel=3)
    _print(f"warning: {text}", "yellow")


class Whole:
    """The progress of a command that runs others, one line of text. bar: of the other command."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self.describe = describe
        self.bar: Progress | None = None

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        line = Text(self.describe(), style="dim")
        return line if self.bar is None else Group(self.bar.get_renderable(), line)


@contextmanager
def whole(describe: Callable[[], str]) -> Iterator[None]:
    """Display the line that `describe` gives, below the bars of the block and in their lines where
    stderr is not a terminal."""
    global _whole
    before, _whole = _whole, Whole(describe)
    try:
        if _quiet or not console().is_terminal:
            yield
            return
        from rich.live import Live

        live = Live(_whole, console=console(), transient=True)
        live.start()
        try:
            yield
        finally:
            with suppress(OSError):  # the terminal was closed
                live.stop()
    finally:
        _whole = before


class Bar:
    """Progress over a known amount of work (bytes, steps), with rate and time left.

    total: None for a stage of unknown length, which displays the time that it has taken. outer: of
    a bar inside another's part, called with the share of `total` that was done.
    """

    def __init__(
        self,
        description: str,
        total: float | None,
        progress: Progress | None,
        outer: Callable[[float], None] | None = None,
    ) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total) if progress else None
        self._description = self._label = description
        self._total, self._done, self._skipped = total, 0.0, 0.0
        self._began = time.monotonic()
        self._outer = outer

    @property
    def left(self) -> float | None:
        """Seconds to the end at the rate so far; None before anything is done."""
        worked = self._done - self._skipped
        if self._total is None or worked <= 0:
            return None
        return (time.monotonic() - self._began) * (self._total - self._done) / worked

    def skip(self, amount: float) -> None:
        """Move the bar by `amount` without counting it as throughput; negative moves back."""
        self._done += amount
        self._skipped += amount
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=amount)

    def advance(self, amount: float = 1, text: str | None = None) -> None:
        """Move the bar by `amount` that was done; `text` is displayed beside the description."""
        self._label = self._description if text is None else f"{self._description} {text}"
        self._move(amount)

    @contextmanager
    def part(self, amount: float) -> Iterator[None]:
        """Move the bar by `amount` in all: as a bar inside the block moves, the rest at its end."""
        global _part
        left = amount

        def move(share: float) -> None:
            nonlocal left
            step = min(left, share * amount)
            left -= step
            self._move(step)

        before, _part = _part, move
        try:
            yield
        finally:
            _part = before
        self._move(left)

    def _move(self, amount: float) -> None:
        self._done += amount
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=amount, description=self._label)
        if self._outer is not None and self._total:
            self._outer(amount / self._total)

    def line(self) -> str:
        """The state in one line: 'Merging: 40%, 12 s left'."""
        if self._total is None:
            return f"{self._label}: {time.monotonic() - self._began:.0f} s so far"
        left = "" if self.left is None else f", {self.left:.0f} s left"
        return f"{self._label}: {self._done / self._total:.0%}{left}"


@contextmanager
def bar(description: str, total: float | None, *, unit: str = "") -> Iterator[Bar]:
    """Display a bar with an ETA while the block runs, unless the block is inside another bar's,
    whose `part` it then moves.

    unit: 'bytes' displays sizes and MB/s.
    """
    global _active, _part
    if _quiet or _active:
        outer, _part = _part, None
        try:
            yield Bar(description, total, None, outer)
        finally:
            _part = outer
        return
    _active = True
    try:
        terminal = _terminal_bar(description, total, unit) if console().is_terminal else None
        with terminal or _printed_bar(description, total) as active_bar:
            yield active_bar
    finally:
        _active = False


@contextmanager
def stage(description: str) -> Iterator[None]:
    """Display that a step of unknown length is running, so that no command seems to hang."""
    with bar(description, None):
        yield


@contextmanager
def _terminal_bar(description: str, total: float | None, unit: str) -> Iterator[Bar]:
    """A bar on a terminal."""
    from rich import progress as rich_progress

    columns: list[rich_progress.ProgressColumn] = [
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=28),
    ]
    if unit == "bytes":
        columns += [rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn()]
    elif total is not None:
        columns.append(rich_progress.TaskProgressColumn())
    columns.append(rich_progress.TimeElapsedColumn())
    if total is not None:
        columns += [rich_progress.TextColumn("eta"), rich_progress.TimeRemainingColumn()]
    progress = rich_progress.Progress(*columns, console=console(), transient=True)
    active_bar = Bar(description, total, progress)
    if _whole is not None:
        _whole.bar = progress
        try:
            yield active_bar
        finally:
            _whole.bar = None
        return
    progress.start()
    try:
        yield active_bar
    finally:
        with suppress(OSError):  # the terminal was closed
            progress.stop()


@contextmanager
def _printed_bar(description: str, total: float | None) -> Iterator[Bar]:
    """Lines every fifteen seconds, printed by a thread since an item may take longer than that."""
    active_bar = Bar(description, total, None)
    ended = threading.Event()

    def print_lines() -> None:
        while not ended.wait(_LINE_EVERY):
            after = "" if _whole is None else f"; {_whole.describe()}"
            _print(active_bar.line() + after, "dim")

    thread = threading.Thread(target=print_lines, name="regraft-progress", daemon=True)
    thread.start()
    try:
        yield active_bar
    finally:
        ended.set()
        thread.join()


def _print(text: str, style: str) -> None:
    """Print a line on stderr. Where that is full or closed, the work continues in silence."""
    global _quiet
    try:
        console().print(text, markup=False, style=style)
    except (OSError, ValueError):
        _quiet = True
