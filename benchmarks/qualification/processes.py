"""A part in a process of its own, which is killed at its time limit.

The process is forked from one that has imported torch and not touched CUDA, so that a part starts
in milliseconds; `in_new_interpreter` is for machines where CUDA does not start after a fork.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_POLL = 0.02  # seconds
_TAIL = 1500  # characters
_HUNG = "Timeout ("  # the first word of faulthandler's stacks


@dataclass(frozen=True)
class Outcome:
    """How a process ended. code: None at its time limit, negative for a signal. tail: the end of
    its output."""

    code: int | None
    seconds: float
    tail: str


def run_part(work: Callable[[], object], log: Path, limit: float) -> Outcome:
    """Call `work` in a child process with `limit` seconds, its output appended to `log`.

    At its end, or when this process is interrupted, the child and all that it started are killed.
    """
    began = time.monotonic()
    log.touch()
    start = log.stat().st_size
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _child(work, log, limit)
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(child, child)  # in the child as well: either may run first
    code: int | None = None
    ended = False
    try:
        while not ended and time.monotonic() - began < limit:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                code, ended = os.waitstatus_to_exitcode(status), True
            else:
                time.sleep(_POLL)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not ended:
            os.waitpid(child, 0)
    return Outcome(code, time.monotonic() - began, _tail(log, start))


def _tail(log: Path, start: int) -> str:
    """The end of the output; of a process that hung, the beginning of the stack that ends it."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 20 * _TAIL))
        text = file.read().decode(errors="replace").strip()
    at = text.rfind(_HUNG)
    return text[at : at + _TAIL] if at >= 0 else text[-_TAIL:]


def in_new_interpreter(arguments: list[str]) -> Callable[[], object]:
    """Work for `run_part`: this program with other arguments, in a new interpreter."""
    command = [sys.executable, os.path.abspath(sys.argv[0]), *arguments]
    return lambda: os.execv(command[0], command)


def _child(work: Callable[[], object], log: Path, limit: float) -> None:
    """Run `work` and exit; does not return."""
    code = 1
    try:
        # A group, not a session: what kills the shell's session must reach this process as well.
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for target in (1, 2):
            os.dup2(fd, target)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
        faulthandler.enable(sys.stderr)
        if limit > 2:  # so that the log has the stack of a part that hangs
            faulthandler.dump_traceback_later(limit - 1, file=sys.stderr)
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)  # without the clean-up of libraries that the parent shares
