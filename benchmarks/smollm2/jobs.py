"""Jobs that depend on each other, each a command with one output, several at a time.

A job whose output is there is not run again, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """Something that makes `output`.

    work: the command line of regraft, a function that makes `output`, or one that returns the
    command line when the job begins. needs: names of jobs that come first. after: of jobs that come
    first or fail. heavy: it takes most of the device or of the cores.
    """

    name: str
    work: Sequence[str] | Callable[[], Sequence[str] | None]
    output: Path
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    heavy: bool = False


def run_jobs(
    jobs: Sequence[Job], log: Path, at_once: int, heavy: int, seconds: float, **env: str
) -> dict[str, str]:
    """Run all jobs; {name: why it was not done} of those that failed or were not begun.

    at_once: jobs at a time, of which `heavy` may be heavy ones. seconds: after these none begins.
    """
    names = {job.name for job in jobs}
    for job in jobs:
        if unknown := {*job.needs, *job.after} - names:
            raise ValueError(f"{job.name} needs {', '.join(sorted(unknown))}, which is no job")
    log.mkdir(parents=True, exist_ok=True)
    began, left = time.monotonic(), list(jobs)
    failed: dict[str, str] = {}
    done: set[str] = set()
    running: dict[Future[str], Job] = {}
    with ThreadPoolExecutor(at_once) as pool:
        while left or running:
            late = time.monotonic() - began > seconds
            for job in list(left):
                missing = [need for need in job.needs if need in failed]
                if late or missing:
                    failed[job.name] = f"{missing[0]} failed" if missing else "no time left"
                    left.remove(job)
                elif _ready(job, done, failed, running, at_once, heavy):
                    running[pool.submit(_run, job, log, env)] = job
                    left.remove(job)
            if not running:
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                reason = future.result()
                if reason:
                    failed[job.name] = reason
                else:
                    done.add(job.name)
                print(f"{time.monotonic() - began:6.0f} s  {job.name}  {reason}", flush=True)
    return failed


def _ready(
    job: Job,
    done: set[str],
    failed: Mapping[str, str],
    running: Mapping[Future[str], Job],
    at_once: int,
    heavy: int,
) -> bool:
    busy = sum(other.heavy for other in running.values())
    free = len(running) < at_once and (not job.heavy or busy < heavy)
    ended = all(name in done or name in failed for name in job.after)
    return free and ended and all(need in done for need in job.needs)


def _run(job: Job, log: Path, env: Mapping[str, str]) -> str:
    """Run one job; the reason if it failed."""
    if job.output.exists():
        return ""
    work = job.work
    if callable(work):
        try:
            made = work()
        except Exception as error:  # one job of many: the others go on
            return f"{type(error).__name__}: {error}"
        if made is None:
            return ""
        work = made
    line = [sys.executable, "-m", "regraft", *work]
    began = time.monotonic()
    with (log / f"{job.name}.log").open("w") as file:
        code = subprocess.run(
            line, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **env}, check=False
        ).returncode
        file.write(f"\nexit {code} after {time.monotonic() - began:.1f} s: {' '.join(line)}\n")
    if code == 0:
        return ""
    lines = (log / f"{job.name}.log").read_text().splitlines()
    said = [one for one in lines if one.startswith(("Error", "error", "regraft:"))]
    return " ".join(said[-1:]) or f"exit {code}"
