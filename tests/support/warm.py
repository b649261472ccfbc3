"""A process with the imports done that runs jobs given as lines of its standard input, and the
environment of the ranks that it forks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any, ClassVar


class WarmProcess:
    """Starts `script` once; `ask` sends it a job. A context manager."""

    script: ClassVar[str]

    def __enter__(self) -> Any:
        self._process = subprocess.Popen(
            [sys.executable, self.script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, line: str) -> str:
        """The process's answer to one line; '' where it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def free_port() -> int:
    """A free port, for the store of a job's process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def set_rank(rank: int, world: int, port: int) -> None:
    """Set torchrun's variables in this process."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
