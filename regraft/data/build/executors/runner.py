"""Pieces of work as tasks of a datatrove pipeline: in processes, Slurm jobs or Ray actors.

The results are files in the staging folder, which all machines of a cluster see: what was done
before this process was killed, or after it, is done when the build is resumed.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.data.build.executors.options import CLUSTERS, Executor, Kind
from regraft.data.build.work import DONE, Calls, Done, Setting, path_of, spool_hash
from regraft.errors import InputError, RegraftError, writing


class DatatroveRunner:
    """Runs pieces of work by one of datatrove's executors. workers: processes of a local one."""

    def __init__(self, kind: Kind, options: Executor, setting: Setting, workers: int) -> None:
        self._kind, self._options, self._workers = kind, options, workers
        self._setting = setting
        self._folder = setting.folder.absolute() / "executor"

    def run(self, calls: Calls) -> Iterator[tuple[str, Done]]:
        """(name, result) of each piece of work, when all are done.

        Raises what a piece raises, and RegraftError where one left no result.
        """
        missing = [key for key in calls if not self._is_done(key)]
        if missing:
            self._write_calls(missing, calls)
            stage = f"{len(missing):,} tasks of datatrove ({self._kind})"
            with progress.stage(stage), _without_output():
                self._launch(len(missing))
        lost = []
        for key in calls:
            path = self._result(key)
            outcome = json.loads(path.read_bytes()) if path.is_file() else None
            if outcome is None:
                lost.append(key)
            elif "error" in outcome:
                path.unlink()  # done again by a resumed build
                error = InputError if outcome["exit_code"] == 2 else RegraftError
                where = f" The task ran on {outcome['machine']}." if self._kind in CLUSTERS else ""
                raise error(outcome["error"] + where)
            else:
                yield key, DONE.validate_python(outcome["done"])
        if lost:
            raise RegraftError(
                f"{len(lost):,} of {len(calls):,} tasks left no result, such as {lost[0]}; their "
                f"logs are in {self._folder}, and --resume runs them again."
            )

    def _is_done(self, key: str) -> bool:
        """Whether an earlier run left the result of a piece, and its documents are whole."""
        path = self._result(key)
        if not path.is_file():
            return False
        done = json.loads(path.read_bytes()).get("done")
        if done is not None and spool_hash(path_of(self._setting, key)) == done["xxh3"]:
            return True
        path.unlink()
        return False

    def _result(self, key: str) -> Path:
        return self._folder / "results" / f"{key}.json"

    def _write_calls(self, keys: list[str], calls: Calls) -> None:
        """A file for every piece of work, by the rank of its task."""
        from regraft.data.build.executors.task import call_file

        folder = self._folder / "calls"
        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (self._folder / "results").mkdir(exist_ok=True)
            for rank, key in enumerate(keys):
                call = (str(self._result(key)), *calls[key])
                call_file(folder, rank).write_bytes(pickle.dumps(call))

    def _launch(self, tasks: int) -> None:
        """Run the tasks, and wait for their end."""
        from datatrove import executor

        from regraft.data.build.executors.task import PoolExecutor, Task

        options = self._options
        cluster: dict[str, Any] = {
            "workers": options.tasks or -1,
            "cpus_per_task": options.cpus,
            "mem_per_cpu_gb": math.ceil(options.memory / options.cpus / 2**30),
        }
        common: dict[str, Any] = {
            "pipeline": [Task(str(self._folder / "calls"))],
            "tasks": tasks,
            "logging_dir": str(self._folder),
            "skip_completed": False,
        }
        if self._kind == "local":
            PoolExecutor(**common, workers=min(self._workers, tasks)).run()
        elif self._kind == "ray":
            import ray

            started = not ray.is_initialized()
            if started:  # else the caller has connected to a cluster
                ray.init(logging_level="error")
            try:
                executor.RayPipelineExecutor(**common, **cluster).run()
            finally:
                if started:
                    ray.shutdown()
        else:
            path = f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
            jobs = executor.SlurmPipelineExecutor(
                **common, **cluster, partition=options.partition, time=options.time, qos="",
                job_name="regraft-data", env_command="; ".join(filter(None, (path, options.setup))),
                # sbatch returns when all tasks have ended
                sbatch_args={**options.sbatch, "wait": ""},
            )  # fmt: skip
            try:
                jobs.run()
            except subprocess.CalledProcessError as error:
                progress.warn(
                    f"sbatch ended with {error.returncode}: the job was refused, or a task failed"
                )


@contextmanager
def _without_output() -> Iterator[None]:
    """Keep what datatrove says off the terminal; its tasks write logs."""
    os.environ.setdefault("LOGURU_LEVEL", "ERROR")  # in processes that it starts
    from loguru import logger

    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")
