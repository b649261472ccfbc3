"""The folder of a job: the output of every stage, and which stages are finished.

    OUT/.regraft-graft/job.json            the recipe that the folder belongs to
    OUT/.regraft-graft/STAGE.json          key and content of a finished stage
    OUT/.regraft-graft/lock                held while a job writes

Stages publish their own folders by rename, so a killed job leaves whole outputs and, beside them,
the staging folder of the stage that ran, from which that stage continues.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from regraft.checkpoint.write.journal import lock_file
from regraft.checkpoint.write.manifest import JOURNAL, foreign_files, read_manifest, remove_output
from regraft.checkpoint.write.target import resolve_target, staging_folder
from regraft.errors import CheckpointError, InputError, writing
from regraft.records import SCHEMA_VERSION, dump_json, read_record

_STATE = ".regraft-graft"


@dataclass(frozen=True, kw_only=True)
class JobState:
    """job.json. recipe: the text of the recipe; device: the kind of device of all stages."""

    recipe: str
    device: str
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class FinishedStage:
    """A finished stage. key: hash of its inputs and arguments; content: of its output; out: its
    folder in the job's."""

    key: str
    content: str
    out: str
    schema_version: int = SCHEMA_VERSION


class Workspace:
    """The folder of a job. Raises InputError where it cannot be one."""

    def __init__(self, out: str | Path) -> None:
        self.folder = Path(out)
        self.target = resolve_target(out)
        self.state = self.folder / _STATE
        if self.target.exists() and not self.target.is_dir():
            raise InputError(f"The output {out} is a file; choose a folder.")

    @property
    def job(self) -> JobState | None:
        """The job that the folder belongs to; None for a new folder."""
        if not (self.state / "job.json").is_file():
            return None
        return read_record(self.state / "job.json", JobState, "start again with --overwrite")

    def check(self, recipe: str, device: str, *, overwrite: bool, resume: bool) -> None:
        """Raise InputError unless a job by this recipe may write here.

        The same job always continues: finished and unchanged stages are not run again. Another
        one needs `resume` (unchanged stages stay) or `overwrite` (all stages run again).
        """
        if not self.folder.is_dir() or {path.name for path in self.folder.iterdir()} <= {_STATE}:
            return  # new, or of a job that was killed before job.json was written
        try:
            before = self.job
        except CheckpointError:
            if overwrite:
                return
            raise
        if before is None:
            raise InputError(
                f"The output folder {self.folder} is not empty and holds no job of regraft graft; "
                "choose another folder or empty it."
            )
        if (before.recipe, before.device) != (recipe, device) and not (overwrite or resume):
            what = "recipe" if before.recipe != recipe else "kind of device"
            raise InputError(
                f"The output folder {self.folder} holds a job with another {what}: --resume runs "
                "again only what the change affects, --overwrite runs everything again."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and lock it. Raises InputError where another process has locked it."""
        with writing(self.state):
            self.state.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            lock_file(fd, self.folder, self.target)
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def begin(self, recipe: str, device: str) -> None:
        """Record the job that the folder belongs to from now on."""
        self._write("job.json", JobState(recipe=recipe, device=device))

    def finished(self, name: str) -> FinishedStage | None:
        """The record of a stage whose output is as the stage left it; None for any other."""
        path = self.state / _file_name(name)
        if not path.is_file():
            return None
        try:
            record = read_record(path, FinishedStage, "")
        except CheckpointError:
            return None
        return record if _is_whole(self.folder / record.out) else None

    def finish(self, name: str, record: FinishedStage) -> None:
        """Record that a stage is finished."""
        self._write(_file_name(name), record)

    def forget(self, name: str) -> None:
        """Forget that a stage is finished, so that it runs again."""
        (self.state / _file_name(name)).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The stages that have a record."""
        files = (path.name for path in self.state.glob("*.json"))
        return sorted(_stage_name(name) for name in files if name != "job.json")

    def remove_others(self, names: Collection[str], outs: Collection[str]) -> None:
        """Remove the outputs of stages of an earlier recipe, but no files of the user. names, outs:
        the stages of the present recipe and their folders."""
        for name in self.names():
            if name not in names:
                if (record := self.finished(name)) is not None and record.out not in outs:
                    remove_output(self.folder / record.out)
                self.forget(name)
        present = {staging_folder(self.target / out) for out in outs}
        for staging in self.target.glob(f"*/{staging_folder(Path('*')).name}"):
            if staging not in present and (staging / JOURNAL).is_file():
                shutil.rmtree(staging)
        for recipe in self.target.glob("recipes/*/*.yaml"):
            if recipe.relative_to(self.target / "recipes").with_suffix("").as_posix() not in outs:
                recipe.unlink()
        for folder in (*self.target.glob("recipes/*"), *self.target.glob("*")):
            with suppress(OSError):  # not empty, or a file
                folder.rmdir()

    def _write(self, name: str, record: object) -> None:
        path = self.state / name
        part = path.with_suffix(".part")
        with writing(path):
            part.write_bytes(dump_json(record))
            part.rename(path)


def _file_name(stage: str) -> str:
    return f"{stage.replace('/', '@')}.json"


def _stage_name(file: str) -> str:
    return file.removesuffix(".json").replace("@", "/")


def _is_whole(folder: Path) -> bool:
    """Whether every file of an output folder is as it was published."""
    entries = read_manifest(folder)
    if entries is None or foreign_files(folder):
        return False
    return all((folder / name).is_file() for name in entries)
