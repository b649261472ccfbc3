"""A piece of a build as a task of datatrove, and its executor on this machine."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from regraft.data.build.pool import Pool
from regraft.errors import RegraftError
from regraft.records import to_json
from regraft.write import json_text, write_text


class Task(PipelineStep):
    """Does the piece of work number `rank` in `folder`, and leaves what it counted beside it.

    datatrove copies and pickles its steps for every task, so the pieces are in files: (path of the
    result, function, arguments). An error that regraft explains is a result, for the process that
    waits to raise; others are datatrove's to report. Paths in a recipe may be relative, so a task
    works in the folder in which the command was given.
    """

    type = "regraft"
    name = "data build"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.directory = os.getcwd()

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> tuple[()]:
        """Do the piece of work; no documents come in or go on."""
        os.chdir(self.directory)
        result, function, arguments = pickle.loads(call_file(Path(self.folder), rank).read_bytes())
        try:
            outcome = {"done": to_json(function(*arguments))}
        except RegraftError as error:
            outcome = {
                "error": str(error),
                "exit_code": error.exit_code,
                "machine": socket.gethostname(),
            }
        part = Path(f"{result}.{os.getpid()}")
        write_text(part, json_text(outcome))
        part.rename(result)
        return ()


class PoolExecutor(LocalPipelineExecutor):
    """Runs its tasks in a `Pool` of this package: a process that is killed ends the build, where
    datatrove's own pool waits for its result for ever, and a killed build leaves no processes."""

    def run(self) -> None:
        """Run all tasks. Raises RegraftError where a process was killed."""
        with Pool(self.workers) as pool:
            calls = {str(rank): (_run_task, (self, rank)) for rank in range(self.tasks)}
            for _ in pool.run(calls):
                pass


def _run_task(executor: PoolExecutor, rank: int) -> None:
    # a local rank other than 0, whose log datatrove prints; those of all are in files
    executor._run_for_rank(rank, local_rank=1)


def call_file(folder: Path, rank: int) -> Path:
    """The file of a piece of work."""
    return folder / f"{rank:06d}.call"
