"""How a command runs: environment, signals, one-line errors with exit codes, tables and --json.

    run_app(app)                 the process: environment, signals, standard output at exit
    run(work, show, options)     one command: its work, then its result on standard output

Exit codes: 0 done; 2 the user's input or arguments are wrong; 1 anything else; 128 + signal when
interrupted (130 SIGINT, 143 SIGTERM, 129 SIGHUP). Whatever happens, one line on stderr says it.
"""

from __future__ import annotations

import _thread
import io
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from regraft import progress
from regraft.errors import InputError, OutputError, RegraftError, os_error_sentence
from regraft.records import to_json
from regraft.stdout import discard_stdout, flush_stdout, prints_go_to_stderr, write_stdout

if TYPE_CHECKING:
    import typer
    from rich.console import RenderableType

Result = TypeVar("Result")

_SIGNALS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated (SIGTERM)",
    signal.SIGHUP: "the terminal was closed (SIGHUP)",
}
_ENVIRONMENT = {
    # Idle OpenMP threads sleep instead of spinning: spinning ones slow a busy machine tenfold.
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    # Segments that grow: buffer sizes change with every module, stage and length.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}


_resumable = False  # the command that runs has --resume
_pending: signal.Signals | None = None  # a signal that is to be sent again


@dataclass(frozen=True)
class Options:
    """The options that every command has, and whether it has --resume, too.

    threads: of torch on CPUs; None: torch's own choice.
    """

    as_json: bool = False
    quiet: bool = False
    debug: bool = False
    threads: int | None = None
    resumable: bool = False


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to stop."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.signal = number

    def __str__(self) -> str:
        return _SIGNALS[self.signal] + ("; --resume continues where it can" if _resumable else "")


# The process


def run_app(app: typer.Typer, arguments: list[str] | None = None) -> NoReturn:
    """Run a Typer application and exit; standard output is flushed before, so that a full disk or
    a closed pipe is one line and exit code 1 here, too."""
    set_environment()
    _open_standard_streams()
    _handle_signals()
    threading.excepthook = _report_thread
    sys.unraisablehook = _report_unraisable
    try:
        app(arguments)
        code: Any = 0
    except SystemExit as exit_:
        code = exit_.code
    except KeyboardInterrupt as error:  # outside of a command's work
        code = _interrupted(error)
    except RegraftError as error:  # of --version and --schema
        code = print_error(str(error), error.exit_code)
    except OSError as error:  # such as --help > /dev/full
        discard_stdout()
        code = print_error(os_error_sentence(error, error.filename or "to standard output"), 1)
    if not code and _pending is not None:
        code = _interrupted(Interrupted(_pending))
    if not code:
        try:
            flush_stdout()
        except OutputError as error:
            code = print_error(str(error), error.exit_code)
    sys.exit(code)


def set_environment() -> None:
    """Set the variables that torch reads when it is imported, where the user has not."""
    for name, value in _ENVIRONMENT.items():
        if name == "PYTORCH_CUDA_ALLOC_CONF" and "PYTORCH_ALLOC_CONF" in os.environ:
            continue
        os.environ.setdefault(name, value)


def _open_standard_streams() -> None:
    """Open /dev/null as every standard stream that is closed, since otherwise the first file that
    is opened gets its number, and what a library prints goes into a model."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            if name == "stderr":
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a name that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """One line for a library's background thread that fails, such as TensorBoard's on a full disk.
    regraft's own threads raise their errors in the main one."""
    name = failed.thread.name if failed.thread else "a thread"
    text = " ".join(str(failed.exc_value).split())
    progress.warn(f"{name} of a library has failed ({failed.exc_type.__name__}: {text})")


def _report_unraisable(ignored: sys.UnraisableHookArgs) -> None:
    """One line for an error in a `__del__` or a callback of C, which Python drops. A signal may
    have come there: it is sent again, since the command would go on as if it had not come."""
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


def _handle_signals() -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or & in a script
            signal.signal(number, on_signal)


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


def _interrupted(error: KeyboardInterrupt) -> int:
    if not isinstance(error, Interrupted):
        error = Interrupted(signal.SIGINT)
    for number in _SIGNALS:  # the line is printed once
        with suppress(ValueError):  # not the main thread
            signal.signal(number, signal.SIG_IGN)
    return print_error(str(error), 128 + error.signal)


# One command


def run(
    work: Callable[[], Result],
    show: Callable[[Result], Iterable[RenderableType]],
    options: Options,
) -> None:
    """Do the work and print its result: as one JSON object, or what `show` makes of it.

    Of several processes (torchrun) the first alone prints. Raises SystemExit after an error.
    """
    global _resumable
    _resumable = options.resumable
    progress.configure(quiet=options.quiet or options.as_json)
    warnings.formatwarning = lambda message, *_args, **_: f"regraft: warning: {message}\n"
    try:
        if options.threads is not None:
            use_threads(options.threads)
        with prints_go_to_stderr():
            result = work()
        if int(os.environ.get("RANK", "0")):
            return
        plain = to_json(result)
        if options.as_json:
            write_stdout(_json(plain) + "\n")
        elif isinstance(plain, dict) and "plan" in plain:
            write_stdout(_rendered([lines("Nothing is written (--dry-run)", _plan_lines(plain))]))
        else:
            write_stdout(_rendered(show(result)))
    except KeyboardInterrupt as error:
        raise SystemExit(_interrupted(error)) from None
    except Exception as error:
        if options.debug:
            raise
        message, code = _explanation(error)
        raise SystemExit(print_error(message, code)) from None


def use_threads(count: int) -> None:
    """Let torch use `count` threads. Raises InputError below 1."""
    if count < 1:
        raise InputError(f"--threads {count} is too few; give at least 1.")
    import torch

    torch.set_num_threads(count)


def _explanation(error: Exception) -> tuple[str, int]:
    """(one line, exit code) for any exception."""
    if isinstance(error, RegraftError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}); close other programs or use a smaller --rank", 1
    if isinstance(error, OSError):
        return os_error_sentence(error, error.filename, "access"), 1
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return "not enough GPU memory; use --device cpu or a smaller --rank", 1
    first = (str(error).strip() or "no message").splitlines()[0]
    return (
        f"an error that regraft does not know ({type(error).__name__}: {first}); please report "
        "it with what --debug shows",
        1,
    )


def print_error(message: str, code: int) -> int:
    """Print 'regraft: message' as one line on stderr, as far as that can be written; the code."""
    with suppress(OSError, ValueError):
        print(f"regraft: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


# What is printed


def _json(result: Any) -> str:
    try:
        return json.dumps(result, allow_nan=False)
    except ValueError:
        raise RegraftError(
            "The result holds NaN or infinity, which JSON cannot express; leave --json out to see "
            "it, and check the inputs for NaN."
        ) from None


def _rendered(parts: Iterable[RenderableType]) -> str:
    from rich.console import Console

    shape = Console()  # of the terminal, if standard output is one
    text = io.StringIO()
    console = Console(
        file=text, width=shape.width, force_terminal=shape.is_terminal, highlight=False
    )
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))
    return text.getvalue()


def lines(title: str, rows: Iterable[tuple[str, str]]) -> RenderableType:
    """A table of (label, text) under a title; nothing in it is taken for markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    for label, text in rows:
        table.add_row(Text(label, "dim"), Text(text))
    return table


def _plan_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of a plan: ('read', '32.1 GB') of {'read_bytes': 32121044992}."""
    from regraft.units import format_bytes

    return [
        (name.removesuffix("_bytes").replace("_", " "), format_bytes(value))
        if name.endswith("_bytes")
        else (name.replace("_", " "), str(value))
        for name, value in result["plan"].items()
    ]
