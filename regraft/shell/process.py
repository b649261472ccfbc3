"""The process of a command: its environment, its standard streams, its exit code."""

from __future__ import annotations

import logging
import os
import sys
import threading
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, NoReturn

from regraft import progress
from regraft.device import use_expandable_segments
from regraft.errors import OutputError, RegraftError, os_error_sentence
from regraft.shell.failures import print_error, print_interrupt
from regraft.shell.signals import Interrupted, handle_signals, pending_signal
from regraft.shell.stdout import discard_stdout, flush_stdout

if TYPE_CHECKING:
    import typer

_ENVIRONMENT = {
    # Idle OpenMP threads sleep instead of spinning: spinning ones slow a busy machine tenfold.
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
}


def run_app(app: typer.Typer, arguments: list[str] | None = None) -> NoReturn:
    """Run a Typer application and exit.

    Standard output is flushed before, so that a full disk or a closed pipe is one line and exit
    code 1 like any other error.
    """
    set_environment()
    _open_standard_streams()
    handle_signals()
    _hide_missing_kernels()
    threading.excepthook = _report_thread
    try:
        app(arguments)
        code: Any = 0
    except SystemExit as exit_:
        code = exit_.code
    except KeyboardInterrupt as error:  # outside of a command's work
        code = print_interrupt(error)
    except RegraftError as error:  # of --version and --schema
        code = print_error(str(error), error.exit_code)
    except OSError as error:  # such as --help > /dev/full
        discard_stdout()
        code = print_error(os_error_sentence(error, error.filename or "to standard output"), 1)
    pending = pending_signal()
    if not code and pending is not None:
        code = print_interrupt(Interrupted(pending))
    if not code:
        try:
            flush_stdout()
        except OutputError as error:
            code = print_error(str(error), error.exit_code)
    sys.exit(code)


def set_environment() -> None:
    """Set the variables that torch reads when it is imported, where the user has not."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    use_expandable_segments()


def _open_standard_streams() -> None:
    """Open /dev/null as every standard stream that is closed; otherwise the first file that is
    opened gets the number of that stream, and what a library prints goes into a model."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            if name == "stderr":
                sys.stderr = os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # None where it was closed
            stream.reconfigure(errors="backslashreplace")  # for names the terminal cannot display


def _hide_missing_kernels() -> None:
    """Drop bitsandbytes's warning that an optional kernel for 4-bit weights is missing: PEFT
    imports bitsandbytes where it is installed, whether or not a command has such weights."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """Print one line for a library's background thread that fails, such as TensorBoard's on a full
    disk. regraft's own threads raise their errors in the main one."""
    name = failed.thread.name if failed.thread else "a thread"
    text = " ".join(str(failed.exc_value).split())
    progress.warn(f"{name} of a library has failed ({failed.exc_type.__name__}: {text})")
