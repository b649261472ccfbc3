"""Jobs on several gloo processes: one process does the imports and forks the ranks of each job.

`Jobs.run(jobs, world)` returns what the jobs of these names (`JOBS`) returned in every rank; an
exception in any rank is one of the test's process, with the tracebacks of all ranks.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parallel_attention
import parallel_failures
import parallel_models
import torch
from warm import WarmProcess, exit_code, fork, redirect, reserved_port, set_rank

JOBS: dict[str, Callable[[int], Any]] = {
    name.removeprefix("job_"): job
    for module in (parallel_attention, parallel_models, parallel_failures)
    for name, job in vars(module).items()
    if name.startswith("job_")
}


@dataclass(frozen=True)
class Jobs:
    """Jobs on ranks that a process which has done the imports forks."""

    warm: WarmProcess

    def run(self, jobs: str, world: int) -> dict[str, list[Any]]:
        """What each of `jobs` (names with commas between) returned in each of `world` ranks."""
        return dict(self.warm.ask("parallel_ranks", {"names": jobs.split(","), "world": world}))


def serve(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What each job returned in each rank."""
    return {name: _on_ranks(name, job["world"], folder) for name in job["names"]}


def _on_ranks(name: str, world: int, folder: Path) -> list[Any]:
    children = []
    with reserved_port() as port:
        for rank in range(world):
            child = fork()
            if child == 0:
                redirect(2, folder / f"err{rank}")
                torch.set_num_threads(1)
                set_rank(rank, world, port)
                _rank(JOBS[name], rank, folder / f"result{rank}")
            children.append(child)
        codes = [exit_code(child) for child in children]
    if any(codes):
        errors = "\n".join((folder / f"err{rank}").read_text() for rank in range(world))
        raise RuntimeError(f"the ranks of {name} ended with {codes}:\n{errors}")
    return [json.loads((folder / f"result{rank}").read_text()) for rank in range(world)]


def _rank(job: Callable[[int], Any], rank: int, result: Path) -> None:
    """Write what the job returns, and exit."""
    status = 0
    try:
        result.write_text(json.dumps(job(rank)))
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)
