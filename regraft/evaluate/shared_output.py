"""A staging folder shared by all processes of a run: process 0 reads and writes it for all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from regraft.checkpoint.write.staging import Staging
from regraft.evaluate.answers.distributed import broadcast_from_first
from regraft.input_files import JsonObject
from regraft.parallel import Mesh
from regraft.write import write_text

Lines = list[JsonObject]


class SharedOutput:
    """Files of JSON lines, and the journal's facts by key. All methods are collective; `staging` is
    None in all processes but the first."""

    def __init__(self, mesh: Mesh, staging: Staging | None) -> None:
        self.mesh, self.staging = mesh, staging

        def folders() -> tuple[str, str]:
            assert staging is not None
            return str(staging.folder), str(staging.spool)

        self.folder, self.spool = map(Path, broadcast_from_first(mesh, folders))

    @classmethod
    @contextmanager
    def open(cls, mesh: Mesh, start: Callable[[], Staging]) -> Iterator[SharedOutput]:
        """Call `start` in process 0 to open the staging folder; its error is raised in all
        processes."""
        with ExitStack() as stack:
            opened: list[Staging] = []
            broadcast_from_first(mesh, lambda: opened.append(stack.enter_context(start())))
            yield cls(mesh, opened[0] if opened else None)

    def facts(self, key: str) -> JsonObject | None:
        """The facts in the journal about a finished piece; None if it is not finished."""
        return broadcast_from_first(self.mesh, lambda: self._done(key))

    def note(self, key: str, **facts: Any) -> None:
        """Record a finished piece in the journal."""
        if self.staging is not None:
            self.staging.record(key, **facts)

    def has(self, key: str, path: Path) -> bool:
        """Whether the file of `key` is complete."""
        return broadcast_from_first(
            self.mesh, lambda: self._done(key) is not None and path.is_file()
        )

    def write(self, key: str, path: Path, lines: Lines) -> None:
        """Write the lines to the file, then record it as finished."""
        if self.staging is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        write_text(
            part,
            "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines),
        )
        part.rename(path)
        self.staging.record(key)

    def read(self, path: Path) -> Lines:
        """The JSON lines of a file."""
        return broadcast_from_first(self.mesh, lambda: read_lines(path))

    def _done(self, key: str) -> JsonObject | None:
        assert self.staging is not None
        return self.staging.done(key)


def read_lines(path: Path) -> Lines:
    """The JSON lines of a file, read by this process. Not collective."""
    with path.open(encoding="utf-8") as file:  # not splitlines: prompts may contain U+2028
        return [json.loads(line) for line in file]
