"""Commands of regraft in forks of one process that has done the imports (10 s of each command).

The process is the forkserver of `multiprocessing`; its environment is that of the first command. A
fork in which CUDA does not start, since an import began it before, becomes a new interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path


def start() -> None:
    """Start the process now, so that its imports are done when the first command begins."""
    _context()
    forkserver.ensure_running()


def run_command(arguments: Sequence[str], log: Path) -> int:
    """Run `regraft` with these arguments, its output in `log`. Returns the exit code, negative for
    a signal."""
    process = _context().Process(target=_command, args=(list(arguments), str(log)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["smollm2.warm_imports"])
    return context


def _command(arguments: list[str], log: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import torch

    if Path("/dev/nvidiactl").exists() and not torch.cuda.is_available():
        os.execv(sys.executable, [sys.executable, "-m", "regraft", *arguments])
    from regraft.cli import main

    sys.argv = ["regraft", *arguments]
    main()


def _end_with_parent() -> None:
    """Wait until the process that asked for the command is gone, then end the command."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
