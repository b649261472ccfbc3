"""A file of JSON lines that grows line by line and is read again after a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.errors import writing
from regraft.input_files import JsonObject
from regraft.write import write_text


class LineFile:
    """A file that holds the complete lines of an interrupted run and takes more, each written at
    once. A context manager. entries: those lines; an incomplete last one is removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        complete = []
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            for line in path.open(encoding="utf-8") if path.exists() else ():
                if not line.endswith("\n"):
                    break
                complete.append(line)
            write_text(path, "".join(complete))
            self._file = path.open("a", encoding="utf-8")
        self.entries: list[JsonObject] = list(map(json.loads, complete))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line."""
        with writing(self.path):
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._file.flush()

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
