"""The logs of a run, one JSON object a line: metrics.jsonl (steps), watch.jsonl (validations)."""

from __future__ import annotations

import json
import os
from pathlib import Path

from regraft.input_files import JsonObject
from regraft.records import to_json
from regraft.train.output.trackers import Trackers
from regraft.train.recipe.schema import Body
from regraft.train.record import StepRecord, ValidationRecord, validation_from_json

METRICS, VALIDATIONS = "metrics.jsonl", "watch.jsonl"
_TRACKED = ("loss", "rate", "gradient", "tokens_per_second", "memory", "mfu")


class RunLog:
    """Both logs and the trackers of a run in `folder`.

    steps, validations: lines of an interrupted run that remain; later ones are removed, because
    their steps are repeated. states: folder of the training states.
    """

    def __init__(
        self, folder: Path, states: Path, body: Body, *, steps: int, validations: int
    ) -> None:
        self._metrics = JsonLines(folder / METRICS, steps)
        self._validations = JsonLines(folder / VALIDATIONS, validations) if body.watch else None
        self._trackers = Trackers(folder / "tensorboard", states, steps, body)

    def add_step(self, record: StepRecord) -> None:
        """Log a step."""
        line = to_json(record)
        self._metrics.add(line)
        self._trackers.add(record.step, **{name: line.get(name) for name in _TRACKED})

    def add_validation(self, record: ValidationRecord) -> None:
        """Log a validation."""
        assert self._validations is not None
        self._validations.add(to_json(record))
        nll = {f"nll/{bucket}": value for bucket, value in record.nll.items()}
        self._trackers.add(record.step, **nll)

    def close(self) -> None:
        """Close files and trackers."""
        for part in (self._metrics, self._validations, self._trackers):
            if part is not None:
                part.close()


class JsonLines:
    """A file of JSON lines, each flushed when it is written. Of an existing file the first `lines`
    lines remain."""

    def __init__(self, path: Path, lines: int) -> None:
        earlier = read_lines(path)[:lines]
        staging = path.with_name(f".{path.name}")
        staging.write_text("".join(json.dumps(line) + "\n" for line in earlier))
        os.replace(staging, path)
        self._file = path.open("a", encoding="utf-8")

    def add(self, line: JsonObject) -> None:
        """Append a line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_steps(folder: Path) -> list[StepRecord]:
    """The steps in the folder's metrics.jsonl."""
    return [StepRecord(**line) for line in read_lines(folder / METRICS)]


def read_validations(folder: Path) -> list[ValidationRecord]:
    """The validations in the folder's watch.jsonl."""
    return [validation_from_json(line) for line in read_lines(folder / VALIDATIONS)]


def read_lines(path: Path) -> list[JsonObject]:
    """The complete lines of a log, without a last line that was cut off."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
