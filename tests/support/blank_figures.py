"""Figures that are composed but not rendered, which takes longer than the rest of a small job."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from regraft import drawing

_PNG = base64.b64decode(  # one white pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEANl9ngAAAAABJRU5ErkJggg=="
)
render = drawing.save


def save_blank(canvas: Any, path: Path) -> None:
    """In place of `drawing.save`."""
    path.write_bytes(_PNG)
