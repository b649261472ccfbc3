"""One process that has done the imports and forks what tests run in processes of their own.

`WarmProcess.ask(module, job)` has it call `serve(job)` of a module of this folder and returns the
result; job and result are JSON. It has one thread, so that its forks are safe.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import traceback
from typing import Any


class WarmProcess:
    """A context manager: the process ends with it."""

    def __enter__(self) -> WarmProcess:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
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

    def ask(self, module: str, job: dict[str, Any]) -> Any:
        """What `serve(job)` of a module returned; an exception of its ends up as an assertion."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([module, job]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process that serves {module} has ended"
        result = json.loads(answer)
        assert "failed" not in result, result["failed"]
        return result["returned"]


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


_IMPORTED = (
    "matplotlib.figure", "peft", "torch.distributed.checkpoint", "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama", "regraft.adapters.apply.apply",
    "regraft.adapters.extract.extract", "regraft.evaluate.job", "regraft.graft.job",
    "regraft.merge.job", "regraft.train.job",
)  # fmt: skip


def _import() -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    from blank_figures import save_blank

    from regraft import drawing

    drawing.save = save_blank
    gc.freeze()


def _serve() -> None:
    _import()
    for line in sys.stdin:
        module, job = json.loads(line)
        try:
            answer = {"returned": importlib.import_module(module).serve(job)}
        except Exception:  # it is raised in the test's process
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
