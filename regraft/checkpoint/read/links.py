"""Symbolic links in a model or adapter folder: those that lead out of it are not followed.

A downloaded folder may link to any file of the user, which would be read as a part of the model and
copied into what is made of it. Links of the Hub cache, from a snapshot to the blobs beside it, are
allowed.
"""

from __future__ import annotations

import os
from pathlib import Path

from regraft.errors import CheckpointError


def leads_out(root: Path, path: Path) -> bool:
    """Whether a path below `root` is, or lies behind, a link to something outside."""
    if not os.path.lexists(path):
        return False
    real, inside = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    blobs = _hub_blobs(inside)
    return not (real.is_relative_to(inside) or (blobs is not None and real.is_relative_to(blobs)))


def refuse_links_out(root: Path, names: tuple[str, ...]) -> None:
    """Raise CheckpointError where one of these files of `root` is a link out of it."""
    for name in names:
        if leads_out(root, root / name):
            raise CheckpointError(
                f"{root / name} is a link to a file outside the folder; put the file itself there."
            )


def _hub_blobs(folder: Path) -> Path | None:
    """The blobs of the Hub cache in one of whose snapshots the folder lies."""
    for parent in (folder, *folder.parents):
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent / "blobs"
    return None
