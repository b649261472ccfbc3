"""The line that is printed for an error, and its exit code."""

from __future__ import annotations

import re
import signal
import sys
from contextlib import suppress

from regraft.errors import RegraftError, os_error_sentence
from regraft.shell.signals import Interrupted, ignore_signals


def print_error(message: str, code: int) -> int:
    """Print 'regraft: message' as one line on stderr, where it can be written. Returns the code."""
    with suppress(OSError, ValueError):
        print(f"regraft: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def print_interrupt(error: KeyboardInterrupt) -> int:
    """Print the line of an interrupted command. Returns the exit code, 128 + signal."""
    if not isinstance(error, Interrupted):
        error = Interrupted(signal.SIGINT)
    ignore_signals()
    return print_error(str(error), 128 + error.signal)


_SAVERS = (
    "close what else uses the GPU; in training set memory: {offload: true, tiled_mlp: 8192} or use "
    "more devices (see regraft plan), elsewhere use --device cpu or a smaller --rank"
)


def _requested(message: str) -> str:
    """How much memory was requested and free, from torch's message."""
    size = r"([\d.]+ [KMG]iB)"
    asked = re.search(f"Tried to allocate {size}", message)
    free = re.search(f"total capacity of {size} of which {size} is free", message)
    if asked is None or free is None:
        return ""
    return f": {asked[1]} more were requested, {free[2]} of {free[1]} are free"


def explain(error: Exception) -> tuple[str, int]:
    """(one line, exit code) for any exception."""
    if isinstance(error, RegraftError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}); close other programs or use a smaller --rank", 1
    if isinstance(error, OSError):
        return os_error_sentence(error, error.filename, "access"), 1
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return f"not enough GPU memory{_requested(str(error))}; {_SAVERS}", 1
    first = (str(error).strip() or "no message").splitlines()[0]
    return (
        f"an error that regraft does not know ({type(error).__name__}: {first}); please report "
        "it with what --debug shows",
        1,
    )
