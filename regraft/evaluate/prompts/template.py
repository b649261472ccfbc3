"""Rendering a chat template, which is a program from the model's author, within a time limit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from regraft.errors import InputError

LIMIT = 5.0
"""Seconds for one prompt. A template of a published model takes milliseconds."""


class _TooSlow(BaseException):
    """Not an Exception, which a template's own code might catch."""


def render_chat(tokenizer: Any, question: str) -> str:
    """The question as a user's turn, followed by the beginning of the assistant's.

    Raises InputError if the template refuses it, fails, or takes longer than `LIMIT` seconds.
    """
    turns = [{"role": "user", "content": question}]
    try:
        with _time_limit(LIMIT):
            return str(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            )
    except _TooSlow:
        raise InputError(
            f"The model's chat template runs for more than {LIMIT:g} s on one prompt; leave --chat "
            "out."
        ) from None
    except Exception as error:  # whatever the template's own code raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"The chat template does not accept a single question ({reason}); leave --chat out."
        ) from None


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
