"""Small results that take seconds to compute, stored between runs in the user's cache folder.

The folder is `$REGRAFT_CACHE`, else `$XDG_CACHE_HOME/regraft`, else `~/.cache/regraft`; an empty
`REGRAFT_CACHE` turns caching off. An entry is a JSON file named by the hash of everything that the
result depends on. Where the folder cannot be read or written, the result is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

_FORMAT = "1"  # of the results: increase it when their meaning changes
_MOST = 256  # entries of a kind


def folder() -> Path | None:
    """The folder of the entries; None where caching is turned off."""
    chosen = os.environ.get("REGRAFT_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "regraft"
    except RuntimeError:  # no home folder
        return None


class Entry:
    """One cached result. kind: its folder; depends_on: everything that it depends on."""

    def __init__(self, kind: str, *depends_on: str) -> None:
        name = hashlib.sha256(json.dumps([_FORMAT, *depends_on]).encode()).hexdigest()
        root = folder()
        self.path = root / kind / f"{name}.json" if root else None

    def read(self) -> Any:
        """The cached result, or None."""
        if self.path is not None:
            with suppress(OSError, ValueError):
                return json.loads(self.path.read_text(encoding="utf-8"))
        return None

    def write(self, result: Any) -> None:
        """Store the result, which JSON can express, and delete the oldest ones of its kind."""
        if self.path is None:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(result, file)
                os.replace(name, self.path)
            except OSError:
                os.unlink(name)
                raise
            entries = sorted(self.path.parent.iterdir(), key=lambda path: path.stat().st_mtime)
            for old in entries[:-_MOST]:
                old.unlink(missing_ok=True)
