"""An output folder from its first file to its publication: nothing half-written is ever visible.

Everything is written to a hidden staging folder beside the target. A journal there names each
finished piece with the hash of its bytes, so that a killed run resumes; `publish` renames the
folder onto the target. Data is not synced before its journal line: after a power cut a line may
name bytes that never reached the disk, so a resumed run checks every hash.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.checkpoint.write.disk import sync
from regraft.checkpoint.write.journal import Journal
from regraft.checkpoint.write.manifest import JOURNAL, MANIFEST, remove_output, write_manifest
from regraft.checkpoint.write.target import (
    check_replaceable,
    check_target,
    replaced_folder,
    staging_folder,
)
from regraft.errors import InputError, OutputError, os_error_sentence, writing
from regraft.input_files import JsonObject

_SPOOL = ".regraft-spool"


class Staging:
    """An output folder from hidden staging folder to published target.

    job: a hash of inputs and arguments; an unfinished run is only continued by the same job.
    inputs: files and folders that the target must not overlap, see `target.check_overlap`.
    file: the name of the one file in the staging folder that becomes the target; None: the folder
        becomes it.

    Without `overwrite` a non-empty target is refused; without `resume` or `overwrite`, so is what
    an unfinished run left. `resume` continues it, or starts if there is none; `overwrite` starts
    again (with `resume`: continues if the job is the same) and may replace the target.

    As a context manager it keeps the folder when the block fails, so that `resume` works, unless
    nothing was recorded, or (without `keep_refused`) the input was refused, so that a resumed run
    would fail again. Raises InputError for what the user has to decide, OutputError where the disk
    refuses.
    """

    def __init__(
        self,
        target: Path | str,
        *,
        job: str,
        overwrite: bool = False,
        resume: bool = False,
        inputs: Iterable[str | Path] = (),
        keep_refused: bool = True,
        file: str | None = None,
    ) -> None:
        self._file = file
        self.target = check_target(
            target, overwrite=overwrite, inputs=inputs, is_file=file is not None
        )
        self.folder = staging_folder(self.target)
        self.job = job
        self.overwrite = overwrite
        self._replaced = replaced_folder(self.target)
        self._keep_refused = keep_refused
        self._publishing = False
        self._done: dict[str, JsonObject] = {}
        self._is_new = False  # nothing of an earlier run is in the folder
        self._before_close: list[Callable[[], None]] = []
        with writing(self.folder):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(self.folder, self.target)
            try:
                self._begin(resume)
            except BaseException:
                self.close()
                raise

    @property
    def spool(self) -> Path:
        """A folder in the staging folder for intermediate files of the job; not published."""
        folder = self.folder / _SPOOL
        with writing(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def done(self, key: str) -> JsonObject | None:
        """The facts recorded for a finished piece, in this run or the one it continues."""
        return self._done.get(key)

    def record(self, key: str, **facts: Any) -> None:
        """Record a finished piece: one line of the journal, safe from a kill when this returns."""
        self._journal.append({"key": key, **facts})
        self._done[key] = facts

    def before_close(self, action: Callable[[], None]) -> None:
        """Call `action` before the folder is published or closed, to close the files in it."""
        self._before_close.append(action)

    def publish(self) -> None:
        """Rename the folder onto the target, after writing the manifest and syncing all files.

        An earlier output is first moved aside, so that the old or the new one always exists
        complete; if the process dies in between, the next run for this target puts the old one
        back. Journal and spool are not published.
        """
        self._finish_writers()
        self._publishing = True
        if self._file is not None:
            self._publish_file(self.folder / self._file)
            return
        with progress.stage(f"Publishing {self.target.name}"), writing(self.target):
            shutil.rmtree(self.folder / _SPOOL, ignore_errors=True)
            write_manifest(self.folder)
            for folder, _, names in os.walk(self.folder):
                for name in names:
                    sync(Path(folder) / name)
                sync(Path(folder))
            check_replaceable(self.target, self.overwrite)
            if self.target.is_dir():
                if any(self.target.iterdir()):
                    self.target.rename(self._replaced)
                else:
                    self.target.rmdir()
            try:
                self.folder.rename(self.target)
            except OSError:
                if self._replaced.exists():
                    self._replaced.rename(self.target)
                raise
            # Last, so that a run that dies before the rename still finds its journal.
            (self.target / JOURNAL).unlink()
            sync(self.target.parent)
            self._remove_replaced()
        self._is_new = False

    def close(self) -> None:
        """Stop writing and release the lock; the folder stays if anything was recorded in it."""
        self._finish_writers()
        if not self._journal.closed:
            if self._is_new and not self._done:
                self._discard()
            self._journal.close()

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        refused = isinstance(error, InputError) and not (self._keep_refused or self._publishing)
        if refused:
            self._finish_writers()
            self._discard()
        self.close()
        if isinstance(error, OSError) and error.filename is None:
            # such as ENOSPC of a write: the system does not say which file
            raise OutputError(os_error_sentence(error, f"a file in {self.folder}")) from error

    def _begin(self, resume: bool) -> None:
        """Continue or remove what an earlier run left, or refuse to."""
        recorded = self._journal.read()
        self._done, whole = recorded.pieces, recorded.whole_bytes
        self._is_new = not self._done
        if self._replaced.exists():  # a run died while it replaced the target
            if self.target.exists():
                self._remove_replaced()
            else:
                self._replaced.rename(self.target)
        check_replaceable(self.target, self.overwrite, is_file=self._file is not None)
        if self._done and not resume and not self.overwrite:
            raise InputError(
                f"An unfinished run for {self.target} is in {self.folder}: --resume continues it, "
                "--overwrite starts again."
            )
        if self._done and recorded.job != self.job and not self.overwrite:
            raise InputError(
                f"The unfinished run in {self.folder} had other inputs or arguments; repeat it "
                "with the same ones, or start again with --overwrite."
            )
        if not self._done or not resume or recorded.job != self.job:
            self._done, self._is_new, whole = {}, True, 0
            self._empty()
        self._journal.truncate(whole)  # a torn last line goes
        if whole == 0:
            self._journal.append({"job": self.job})

    def _publish_file(self, made: Path) -> None:
        with progress.stage(f"Publishing {self.target.name}"), writing(self.target):
            sync(made)
            check_replaceable(self.target, self.overwrite, is_file=True)
            made.replace(self.target)
            sync(self.target.parent)
        self._discard()
        self._is_new = False

    def _finish_writers(self) -> None:
        while self._before_close:
            self._before_close.pop()()

    def _empty(self) -> None:
        for entry in list(os.scandir(self.folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != JOURNAL:
                os.unlink(entry.path)

    def _discard(self) -> None:
        """Remove the staging folder, the journal last: it marks the rest as regraft's.

        A disk that refuses is no error here: the next run for this target removes the folder.
        """
        with suppress(OSError):
            self._empty()
            (self.folder / JOURNAL).unlink(missing_ok=True)
            self.folder.rmdir()

    def _remove_replaced(self) -> None:
        """Remove the earlier output; files that came into it meanwhile stay, with a warning."""
        if not self._replaced.exists():
            return
        remaining = remove_output(self._replaced)
        if remaining:
            aside = self._replaced.with_name(f"{self.target.name}-kept-{os.getpid()}")
            (self._replaced / MANIFEST).unlink(missing_ok=True)
            self._replaced.rename(aside)
            progress.warn(
                f"{aside} holds what came into the replaced output meanwhile: {remaining[0]}"
            )
