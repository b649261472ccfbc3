"""The logs of a run, one JSON object a line: metrics.jsonl (steps), watch.jsonl (validations)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from regraft.train.output.trackers import Trackers
from regraft.train.recipe.schema import Body

METRICS, VALIDATIONS = "metrics.jsonl", "watch.jsonl"


class RunLog:
    """Both logs and the trackers of a run in `folder`.

    steps, validations: lines that are already true; later ones, of a run that was killed, are
    removed, because what they describe will be done again. states: folder of the training states.
    """

    def __init__(
        self, folder: Path, states: Path, body: Body, *, steps: int, validations: int
    ) -> None:
        self._metrics = JsonLines(folder / METRICS, steps)
        self._validations = JsonLines(folder / VALIDATIONS, validations) if body.watch else None
        self._trackers = Trackers(folder / "tensorboard", states, steps, body)

    def add_step(self, step: int, figures: dict[str, float], **facts: Any) -> None:
        """figures: what trackers get as well."""
        self._metrics.add({"step": step, **facts, **figures})
        self._trackers.add(step, **figures)

    def add_validation(self, result: dict[str, Any]) -> None:
        """result: of `Validation.run`, with step, stage, attempt and length."""
        assert self._validations is not None
        self._validations.add(result)
        nll = {f"nll/{bucket}": value for bucket, value in result["nll"].items()}
        self._trackers.add(result["step"], **nll)

    def close(self) -> None:
        for part in (self._metrics, self._validations, self._trackers):
            if part is not None:
                part.close()


class JsonLines:
    """A file of JSON lines, each flushed as it is written. Only the first `lines` of an earlier
    run's are kept."""

    def __init__(self, path: Path, lines: int) -> None:
        earlier = read(path)[:lines]
        staging = path.with_name(f".{path.name}")
        staging.write_text("".join(json.dumps(line) + "\n" for line in earlier))
        os.replace(staging, path)
        self._file = path.open("a", encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
