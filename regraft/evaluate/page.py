"""One self-contained HTML page: no network, no script library."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_page(path: Path, result: dict[str, Any]) -> None:
    """The page of a result."""
