"""Commands in forked children of one process that has done the imports, so that many can die.

`Children.run` gives one command line to a child and waits for it. `die` is the number of the call
that changes the disk (os.write, os.rename, ...) before which the child gets `signal`; from call
`fail` on, every such call fails with `error` (ENOSPC: the disk is full). Opening a file to write it
is such a call, too."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from short_demo import write_short_recipe
from warm import LIMIT, WarmProcess, exit_code, fork, redirect

_CALLS = (
    "write", "pwrite", "ftruncate", "posix_fallocate", "rename", "replace", "unlink", "fsync",
    "mkdir", "rmdir",
)  # fmt: skip


@dataclass(frozen=True)
class Children:
    """Commands in children of a process that has done the imports."""

    warm: WarmProcess

    def run(
        self,
        *argv: str | Path,
        die: int | None = None,
        with_signal: signal.Signals = signal.SIGKILL,
        fail: int | None = None,
        error: int = errno.ENOSPC,
        stdout: str | Path | None = None,
        largest: int | None = None,
        gate: tuple[int, str | Path] | None = None,
        importable: str | Path | None = None,
        limit: float = LIMIT,
    ) -> dict[str, Any]:
        """{'code', 'calls', 'out', 'err'} of one command; code is -9 after SIGKILL.

        stdout: the file it writes to, such as /dev/full; '' for a closed one. largest: no file may
        grow beyond this many bytes; the system itself refuses (EFBIG), also what libraries in C
        write. gate: (n, path): before call n create `path`.reached, then wait until `path` exists.
        importable: a folder whose packages are installed. limit: seconds after which the child is
        killed.
        """
        job = {
            "argv": [str(a) for a in argv], "die": die, "signal": with_signal, "fail": fail,
            "error": error, "stdout": None if stdout is None else str(stdout), "largest": largest,
            "gate": None if gate is None else [gate[0], str(gate[1])],
            "importable": None if importable is None else str(importable),
        }  # fmt: skip
        return dict(self.warm.ask("forked", job, limit))


def _child(job: dict[str, Any], count: Path) -> None:
    from regraft.cli import app
    from regraft.shell import process, signals

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # ignored where this runs under &
        signal.signal(number, signal.SIG_DFL)
    lock, calls = threading.Lock(), 0
    main, handled = threading.main_thread(), threading.Event()
    on_signal = signals.on_signal

    def noting(number: int, frame: Any) -> None:
        handled.set()
        on_signal(number, frame)

    signals.on_signal = noting

    def counted(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            with lock:
                calls += 1
                waits = job["gate"] is not None and calls == job["gate"][0]
                dies = calls == job["die"]
                fails = job["fail"] is not None and calls >= job["fail"]
            if dies and job["signal"] == signal.SIGKILL:
                os.kill(os.getpid(), signal.SIGKILL)
            elif dies:
                # to the main thread, wherever it waits; this one does not finish its work first
                signal.pthread_kill(main.ident, job["signal"])
                handled.wait(60)
            if waits:
                _wait_at(Path(job["gate"][1]))
            if fails:
                raise OSError(job["error"], os.strerror(job["error"]))
            return original(*arguments, **named)

        return call

    for name in _CALLS:
        setattr(os, name, counted(getattr(os, name)))
    opened = io.open
    opened_to_write = counted(opened)

    def open_file(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        writes = not isinstance(file, int) and set(mode) & set("wax+")
        return (opened_to_write if writes else opened)(file, mode, *arguments, **named)

    io.open = builtins.open = open_file
    if job["largest"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest"], resource.RLIM_INFINITY))
    try:
        process.run_app(app, job["argv"])
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    if job["largest"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with opened(count, "w") as file:
        file.write(str(calls))
    os._exit(code)


def _wait_at(gate: Path) -> None:
    Path(f"{gate}.reached").touch()
    while not gate.exists():
        time.sleep(0.01)


def serve(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one job in a child of this process."""
    out, err, count = (folder / name for name in ("out", "err", "count"))
    count.write_text("0")
    child = fork()
    if child == 0:
        # After a fork torch makes its thread pool anew where it is first used; two threads that do
        # so at once find none ("Invalid thread pool!", torch 2.13).
        sys.modules["torch"].set_num_threads(1)
        for fd, path in ((1, out), (2, err)):
            redirect(fd, path)
        if job["stdout"]:
            os.dup2(os.open(job["stdout"], os.O_WRONLY), 1)
        elif job["stdout"] == "":
            os.close(1)
            sys.stdout = None
        if job["importable"]:
            sys.path.insert(0, job["importable"])
        _shorten_demo(folder)
        _child(job, count)
    return {
        "code": exit_code(child),
        "calls": int(count.read_text()),
        "out": out.read_text(),
        "err": err.read_text(),
    }


def _shorten_demo(folder: Path) -> None:
    from regraft.demo import job

    job.RECIPE = write_short_recipe(folder / "demo.yaml", "[4, 16]")
