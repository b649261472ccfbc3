"""What several test files share."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pytest
from forked import Children

from regraft import progress

_CACHE = TemporaryDirectory(prefix="regraft-cache-")  # nothing an earlier version kept is trusted
os.environ["REGRAFT_CACHE"] = _CACHE.name


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """As a library has it: warnings are Python's, whatever command ran in this process before."""
    progress.configure(quiet=True)
    shown = warnings.formatwarning
    yield
    warnings.formatwarning = shown


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """An interrupted command ignores further signals, and so would every process started later."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    """A process with the imports done, to run commands in that are killed or find a full disk."""
    with Children() as started:
        yield started


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards without their figure, which takes longer to draw than a small model to extract or
    train."""
    from regraft.adapters.apply import card as graft_card
    from regraft.adapters.extract import card
    from regraft.train.output import curves

    monkeypatch.setattr(
        curves, "draw_curves", lambda folder: (folder / curves.CURVES).write_bytes(b"drawn")
    )
    monkeypatch.setattr(card, "_draw", lambda path, modules: None)
    monkeypatch.setattr(graft_card, "_draw", lambda path, tensors: None)
