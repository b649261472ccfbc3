"""One process that has done the imports and forks what tests run in processes of their own.

`WarmProcess.ask(module, job)` has it call `serve(job, folder)` of a module of this folder and
returns the result; job and result are JSON. It has one thread, so that its forks are safe. A job
starts processes by `fork`, whose standard error goes to files err* in the job's folder. Those of a
job that takes too long are killed, and its error has these files, with the processes' stacks.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from short_imports import shorten_imports

# mergekit's union of vocabularies has the order of a set
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
LIMIT = 120.0
"""Seconds that a job may take."""
_DUMP = 0.5  # seconds for processes to write their stacks


class WarmProcess:
    """A context manager: the process ends with it."""

    def __enter__(self) -> WarmProcess:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, module: str, job: dict[str, Any], limit: float = LIMIT) -> Any:
        """What `serve` of a module returned; an exception of its, or the end of the limit in
        seconds, ends up as an assertion."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([module, job, limit]) + "\n")
        self._process.stdin.flush()
        try:
            answer = self._process.stdout.readline()
        except BaseException:  # pytest's own limit: the next job must not get this one's answer
            self._process.send_signal(signal.SIGALRM)
            self._process.stdout.readline()
            raise
        assert answer, f"the process that serves {module} has ended"
        result = json.loads(answer)
        assert "failed" not in result, result["failed"]
        return result["returned"]


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port for the store of a job's process group, which nobody else is given in the block.

    It is bound and does not listen, so that the store can bind it as well (SO_REUSEADDR). A port
    that is only free may be taken before the store binds it; then rank 0 ends, and the others look
    for it for half an hour.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


def set_rank(rank: int, world: int, port: int) -> None:
    """Set torchrun's variables in this process."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip


_children: list[int] = []  # of the job, not waited for


def fork() -> int:
    """os.fork for a job, into a process group of its own."""
    child = os.fork()
    with suppress(OSError):  # in both processes: either may run first
        os.setpgid(child, child)
    if child:
        _children.append(child)
    else:
        _children.clear()
    return child


def exit_code(child: int) -> int:
    """Wait for a process of `fork`; its exit code, negative for a signal."""
    status = os.waitpid(child, 0)[1]
    _children.remove(child)
    return os.waitstatus_to_exitcode(status)


def redirect(fd: int, path: Path) -> None:
    """Make `path` anew and have everything written to `fd` go there."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, fd)
    os.close(file)


_IMPORTED = (
    "matplotlib.figure", "peft", "rich.console", "rich.table", "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp", "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama", "regraft.adapters.apply.apply",
    "regraft.adapters.extract.extract", "regraft.cli", "regraft.evaluate.assemble",
    "regraft.evaluate.cells", "regraft.evaluate.cost", "regraft.evaluate.job",
    "regraft.evaluate.report.files", "regraft.graft.job", "regraft.merge.job", "regraft.train.job",
    "regraft.train.sharded_state",
)  # fmt: skip


def _import() -> None:
    shorten_imports()
    for name in _IMPORTED:
        importlib.import_module(name)
    import typer.main
    from blank_figures import save_blank
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from regraft import cli, drawing
    from regraft.evaluate.report.page import _environment

    drawing.save = save_blank
    # What libraries compile at their first use is compiled here, and not in every fork.
    typer.main.get_command(cli.app)
    get_checkpoint_conversion_mapping("llama")
    _environment("regraft.evaluate.report").get_template("page.html.j2")
    with drawing.figure(Path(os.devnull)):
        pass
    gc.freeze()


class _TooLong(BaseException):
    """The job has reached its limit. No Exception: code of the job does not catch it."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _TooLong


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def _signal_children(number: signal.Signals) -> None:
    for child in _children:
        with suppress(ProcessLookupError):
            os.killpg(child, number)


def _answer(module: str, job: dict[str, Any], limit: float, folder: Path) -> dict[str, Any]:
    try:
        serving = importlib.import_module(module)
        with _time_limit(limit):
            return {"returned": serving.serve(job, folder)}
    except Exception:  # it is raised in the test's process
        return {"failed": traceback.format_exc()}
    except _TooLong:
        _signal_children(signal.SIGUSR1)
        time.sleep(_DUMP)
        errors = [f"{path.name}:\n{path.read_text()}" for path in sorted(folder.glob("err*"))]
        return {"failed": "\n".join([f"{job} did not end within {limit} s", *errors])}
    finally:
        _signal_children(signal.SIGKILL)
        while _children:
            exit_code(_children[0])


def _serve() -> None:
    _import()
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, file=2)  # forked processes write to their own stderr
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            answer = _answer(*json.loads(line), Path(folder))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    from warm import _serve as serve  # the module that jobs import

    serve()
