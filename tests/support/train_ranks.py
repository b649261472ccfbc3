"""`regraft` commands on several processes: one does the imports and forks the ranks of each."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warm import WarmProcess, exit_code, fork, redirect, reserved_port, set_rank


@dataclass(frozen=True)
class Ranks:
    """Commands on ranks that a process which has done the imports forks."""

    warm: WarmProcess

    def run(
        self,
        world: int,
        *argv: str | Path,
        kill_at: Path | None = None,
        largest: int | None = None,
    ) -> tuple[list[int], list[str]]:
        """(exit codes, stderrs) of one command line on `world` ranks; all are killed as soon as
        the path `kill_at` exists. largest: bytes that a file may have."""
        job = {"world": world, "argv": [str(a) for a in argv], "kill_at": str(kill_at or "")}
        job["largest"] = largest
        answer = self.warm.ask("train_ranks", job)
        return answer["codes"], answer["errors"]

    def run_by_torchrun(self, world: int, *argv: str | Path) -> tuple[list[int], list[str], str]:
        """As `run`, by torchrun's agent; and what all ranks printed."""
        job = {"world": world, "argv": [str(a) for a in argv], "torchrun": True}
        answer = self.warm.ask("train_ranks", job)
        return answer["codes"], answer["errors"], answer["printed"]


def _by_torchrun(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    agent = fork()
    if agent == 0:
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=job["world"], max_restarts=0,
            rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="test", start_method="fork",
        )  # fmt: skip
        codes = elastic_launch(config, _agents_rank)(job["argv"], str(folder))
        (folder / "codes").write_text(json.dumps([codes[rank] for rank in sorted(codes)]))
        os._exit(0)
    exit_code(agent)
    return {
        "codes": json.loads((folder / "codes").read_text()),
        "errors": [(folder / f"err{rank}").read_text() for rank in range(job["world"])],
        "printed": "".join((folder / f"out{rank}").read_text() for rank in range(job["world"])),
    }


def _agents_rank(argv: list[str], folder: str) -> int:
    return _run(argv, Path(folder), int(os.environ["RANK"]))


def _on_ranks(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    children = []
    with reserved_port() as port:
        for rank in range(job["world"]):
            child = fork()
            if child == 0:
                set_rank(rank, job["world"], port)
                if job["largest"]:
                    limits = (job["largest"], resource.RLIM_INFINITY)
                    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                os._exit(_run(job["argv"], folder, rank))
            children.append(child)
        while job["kill_at"] and not os.path.exists(job["kill_at"]):
            time.sleep(0.002)
        for child in children if job["kill_at"] else ():
            os.kill(child, signal.SIGKILL)
        return {
            "codes": [exit_code(child) for child in children],
            "errors": [(folder / f"err{rank}").read_text() for rank in range(len(children))],
        }


def _run(argv: list[str], folder: Path, rank: int) -> int:
    """Run one command with its output in files; its exit code."""
    from regraft.cli import app

    for fd, name in ((1, "out"), (2, "err")):
        redirect(fd, folder / f"{name}{rank}")
    try:
        app(argv, standalone_mode=True)
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def serve(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one job on forked ranks."""
    return (_by_torchrun if job.get("torchrun") else _on_ranks)(job, folder)
