"""Jobs that depend on each other, each a command with one output, several at a time.

A job whose output is there is not run again, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from smollm2.warm import run_command


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


def with_needs(jobs: Sequence[Job], names: Collection[str]) -> list[Job]:
    """The jobs with these names and all that they need, in their order; they come after no
    others."""
    by_name = {job.name: job for job in jobs}
    chosen, left = set[str](), list(names)
    while left:
        name = left.pop()
        if name not in chosen:
            chosen.add(name)
            left += by_name[name].needs
    return [
        replace(job, after=tuple(name for name in job.after if name in chosen))
        for job in jobs
        if job.name in chosen
    ]


def run_jobs(
    jobs: Sequence[Job], log: Path, at_once: int, heavy: int, seconds: float
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
                    running[pool.submit(_run, job, log)] = job
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


def _run(job: Job, log: Path) -> str:
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
    line, file = [*work], log / f"{job.name}.log"
    began = time.monotonic()
    code = run_command(line, file)
    with file.open("a") as opened:
        ended = f"exit {code} after {time.monotonic() - began:.1f} s"
        opened.write(f"\n{ended}: {sys.executable} -m regraft {' '.join(line)}\n")
    if code == 0:
        return ""
    lines = file.read_text().splitlines()
    said = [one for one in lines if one.startswith(("Error", "error", "regraft:"))]
    return " ".join(said[-1:]) or f"exit {code}"
