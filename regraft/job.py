"""What every command that writes a folder does, in the order in which it happens.

    job = Job(out, inputs=[base, extended], overwrite=overwrite, resume=resume)   # check
    record = ...                                                                  # record
    if dry_run:                                                                   # dry run
        return {**record, "plan": plan}
    with job.start(record, device.type) as staging:                               # hash, stage
        ...                                                                       # work, verify
        staging.publish()                                                         # publish

A refused output folder is reported before any model is opened. Inputs that are known only later,
from a recipe, are added with `add_inputs`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from regraft.checkpoint.write.staging import Staging
from regraft.checkpoint.write.target import check_overlap, check_target


class Job:
    """One run of a command that writes the folder `out`, or with `file` the single file `out`.

    inputs: every file and folder that the command reads; Hub ids among them are ignored.
    keep_refused: keep the staging folder when an input turns out to be wrong, because the user may
    correct that input (a text, a recipe); without it the folder is removed.
    file: the name that the one file has while it is made in the staging folder.

    Raises InputError where `out` cannot be written or overlaps an input.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        inputs: Iterable[str | Path] = (),
        overwrite: bool = False,
        resume: bool = False,
        keep_refused: bool = False,
        file: str | None = None,
    ) -> None:
        self.inputs = list(inputs)
        self.overwrite, self.resume, self.keep_refused = overwrite, resume, keep_refused
        self.file = file
        self.target = check_target(
            out, overwrite=overwrite, inputs=self.inputs, is_file=file is not None
        )

    def add_inputs(self, inputs: Iterable[str | Path]) -> None:
        """Protect more inputs. Raises InputError where the output overlaps one."""
        added = list(inputs)
        check_overlap(self.target, added)
        self.inputs += added

    def start(self, *identity: Any) -> Staging:
        """Open the staging folder of the job that `identity` describes (values for JSON).

        An unfinished run is only continued by a job of the same identity, which must hold all that
        changes the output.
        """
        return Staging(
            self.target,
            job=job_hash(*identity),
            overwrite=self.overwrite,
            resume=self.resume,
            inputs=self.inputs,
            keep_refused=self.keep_refused,
            file=self.file,
        )


def job_hash(*identity: Any) -> str:
    """SHA-256 of the values as JSON, independent of the order of keys."""
    text = json.dumps(identity, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
