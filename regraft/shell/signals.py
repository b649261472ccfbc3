"""Signals: the first one interrupts the command cleanly, a second one ends it at once."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

from regraft import progress

_SIGNALS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated (SIGTERM)",
    signal.SIGHUP: "the terminal was closed (SIGHUP)",
}

_resumable = False  # the command that runs has --resume
_pending: signal.Signals | None = None  # a signal that is to be sent again


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to stop; as text, the line to print."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.signal = number

    def __str__(self) -> str:
        return _SIGNALS[self.signal] + ("; --resume continues where it can" if _resumable else "")


def set_resumable(resumable: bool) -> None:
    """Set whether the line of an interrupted command offers --resume."""
    global _resumable
    _resumable = resumable


def handle_signals() -> None:
    """Raise Interrupted on SIGINT, SIGTERM and SIGHUP, unless the process ignores them."""
    sys.unraisablehook = _report_unraisable
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or & in a script
            signal.signal(number, on_signal)


def ignore_signals() -> None:
    """Ignore further signals, so that the line of an interrupted command is printed once."""
    for number in _SIGNALS:
        with suppress(ValueError):  # not the main thread
            signal.signal(number, signal.SIG_IGN)


def pending_signal() -> signal.Signals | None:
    """A signal that came where Python drops errors and has not interrupted the command yet."""
    return _pending


def on_signal(number: int, frame: FrameType | None) -> None:
    """Raise Interrupted, so that locks are released and staging stays resumable; a second signal
    ends the process at once, which staging survives as well."""
    global _pending
    signal_number = signal.Signals(number)
    if _drops_errors(frame):
        _send_again(signal_number)
        return
    _pending = None
    for other in _SIGNALS:
        if signal.getsignal(other) is on_signal:
            signal.signal(other, _on_second_signal)
    raise Interrupted(signal_number)


def _on_second_signal(number: int, _: object) -> None:
    with suppress(OSError):
        os.write(2, f"regraft: {Interrupted(signal.Signals(number))}\n".encode())
    os._exit(128 + number)


def _report_unraisable(ignored: sys.UnraisableHookArgs) -> None:
    """Print one line for an error in a `__del__` or a callback of C, which Python drops. A signal
    that raised its error there is sent again, else the command would go on."""
    error = ignored.exc_value
    if isinstance(error, Interrupted):
        for number in _SIGNALS:
            if signal.getsignal(number) is _on_second_signal:
                signal.signal(number, on_signal)
        _send_again(error.signal)
    else:
        text = " ".join(str(error).split())
        progress.warn(f"an error was ignored ({ignored.exc_type.__name__}: {text})")


def _send_again(number: signal.Signals) -> None:
    """Send the signal to the main thread in 50 ms, when it may be where errors are not dropped; a
    command that ends before then is interrupted at its end."""
    global _pending
    _pending = number

    def send(main: int) -> None:
        time.sleep(0.05)
        signal.pthread_kill(main, number)

    main = threading.main_thread().ident
    assert main is not None
    # not threading.Thread: its locks may be held by what the signal interrupts
    _thread.start_new_thread(send, (main,))


def _drops_errors(frame: FrameType | None) -> bool:
    """Whether Python would drop an error raised in this frame."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code is _report_unraisable.__code__:
            return True
        frame = frame.f_back
    return False
