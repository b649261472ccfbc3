"""What several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pytest
from forked import Children

_CACHE = TemporaryDirectory(prefix="regraft-cache-")  # nothing an earlier version kept is trusted
os.environ["REGRAFT_CACHE"] = _CACHE.name


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    """A process with the imports done, to run commands in that are killed or find a full disk."""
    with Children() as started:
        yield started


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards without their figure, which takes longer to draw than a small model to extract or
    train."""
    from regraft.adapters import card
    from regraft.train import metrics

    monkeypatch.setattr(
        metrics, "draw", lambda folder: (folder / metrics.CURVES).write_bytes(b"drawn")
    )
    monkeypatch.setattr(card, "_draw_extraction", lambda path, modules: None)
    monkeypatch.setattr(card, "_draw_graft", lambda path, tensors: None)
