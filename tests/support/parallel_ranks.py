"""Jobs on several gloo processes: one process does the imports and forks the ranks of each job.

`Jobs.run(jobs, world)` returns what the jobs of these names (`JOBS`) returned in every rank; an
exception in any rank prints its traceback and ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import parallel_attention
import parallel_failures
import parallel_models
import torch
from warm import WarmProcess, free_port, set_rank

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


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """What each job returned in each rank."""
    return {name: _on_ranks(name, job["world"]) for name in job["names"]}


def _on_ranks(name: str, world: int) -> list[Any]:
    children, port = [], free_port()
    for rank in range(world):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            set_rank(rank, world, port)
            _rank(JOBS[name], rank, writing)
        os.close(writing)
        children.append((child, reading))
    results = []
    for rank, (child, reading) in enumerate(children):
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status or not text:
            raise RuntimeError(f"rank {rank} of {name} ended with {status}")
        results.append(json.loads(text))
    return results


def _rank(job: Callable[[int], Any], rank: int, writing: int) -> None:
    status = 0
    try:
        text = json.dumps(job(rank))
        with os.fdopen(writing, "w") as pipe:
            pipe.write(text)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)
