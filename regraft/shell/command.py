"""One command: its work, then its result on standard output, or one line for its error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from regraft import progress
from regraft.device import use_threads
from regraft.records import to_json
from regraft.shell.failures import explain, print_error, print_interrupt
from regraft.shell.printing import json_text, plan_table, rendered
from regraft.shell.signals import set_resumable
from regraft.shell.stdout import prints_go_to_stderr, write_stdout

if TYPE_CHECKING:
    from rich.console import RenderableType

Result = TypeVar("Result")


@dataclass(frozen=True)
class Options:
    """The options that every command has, and whether it has --resume, too.

    threads: CPU threads of torch; None: torch's own choice.
    """

    as_json: bool = False
    quiet: bool = False
    debug: bool = False
    threads: int | None = None
    resumable: bool = False


class Command:
    """The work of a command, and the function that makes tables of the work's result."""

    def __init__(
        self, work: Callable[[], Result], show: Callable[[Result], Iterable[RenderableType]]
    ) -> None:
        self.work: Callable[[], Any] = work
        self.show: Callable[[Any], Iterable[RenderableType]] = show


def run_command(command: Command, options: Options) -> None:
    """Do the work and print its result, as one JSON object or as the tables of `command.show`.

    Of several processes (torchrun) only the first prints. Raises SystemExit after an error.
    """
    set_resumable(options.resumable)
    progress.configure(quiet=options.quiet or options.as_json)
    warnings.formatwarning = lambda message, *_args, **_: f"regraft: warning: {message}\n"
    try:
        if options.threads is not None:
            use_threads(options.threads)
        with prints_go_to_stderr():
            result = command.work()
        if int(os.environ.get("RANK", "0")):
            return
        plain = to_json(result)
        if options.as_json:
            write_stdout(json_text(plain) + "\n")
        elif isinstance(plain, dict) and "plan" in plain:
            write_stdout(rendered([plan_table(plain["plan"])]))
        else:
            write_stdout(rendered(command.show(result)))
    except KeyboardInterrupt as error:
        raise SystemExit(print_interrupt(error)) from None
    except Exception as error:  # the last handler: every error is reported in one line
        if options.debug:
            raise
        message, code = explain(error)
        raise SystemExit(print_error(message, code)) from None
