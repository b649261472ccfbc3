"""Rendering a chat template, which is a program from the model's author, within a time limit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class TemplateFailure(Exception):
    """A template that refuses its messages or fails; the message is the reason, on one line."""


class TemplateTimeout(TemplateFailure):
    """A template that runs longer than its limit."""


class _TooSlow(BaseException):
    """Not an Exception, which a template's own code might catch."""


def run_template(render: Callable[[], T], seconds: float) -> T:
    """The result of `render`, which runs a template. Raises TemplateFailure for anything that it
    raises, and TemplateTimeout after `seconds`."""
    try:
        with _time_limit(seconds):
            return render()
    except _TooSlow:
        raise TemplateTimeout(f"it runs for more than {seconds:g} s") from None
    except Exception as error:  # whatever the template's own code raises
        raise TemplateFailure(" ".join(str(error).split())[:200] or type(error).__name__) from None


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _TooSlow in the block after `seconds`. Only the main thread can be interrupted: in
    others, and on Windows, there is no limit."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    rest, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, rest, interval)
        signal.signal(signal.SIGALRM, before)
