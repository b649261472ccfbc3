"""What several test files share."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from blank_figures import render, save_blank
from forked import Children
from hypothesis import HealthCheck, settings
from scripts import Scripts
from short_imports import shorten_imports
from train_ranks import Ranks
from warm import WarmProcess

from regraft import drawing, progress

# Files whose tests share models or runs that take seconds to make: each goes to one process.
_WHOLE = (
    "benchmarks/test_benchmarks", "demo/test_demo", "docs/test_commands", "docs/test_site",
    "graft/test_report", "graft/test_sweep", "train/test_job", "train/test_parallel",
    "train/test_recovery", "train/test_selection",
)  # fmt: skip
_CACHE = TemporaryDirectory(prefix="regraft-cache-")  # nothing an earlier version kept is trusted
os.environ["REGRAFT_CACHE"] = _CACHE.name


# A busy machine takes longer than hypothesis allows an example and its data.
settings.register_profile("regraft", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("regraft")


def pytest_collection(session: pytest.Session) -> None:
    """Not in the process that only hands out the tests, which imports nothing."""
    if not session.config.getoption("numprocesses", None):
        shorten_imports()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups by file; pytest-xdist's own groups (3.8) are ignored by pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            if "merge/" in file and file.endswith("/test_conformance.py"):
                return "mergekit"  # all that import it
            return file if file.removesuffix(".py").endswith(_WHOLE) else nodeid

    return Scheduler(config, log)


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
def warm() -> Iterator[WarmProcess]:
    """A process with the imports done, which forks others."""
    with WarmProcess() as started:
        yield started


@pytest.fixture(scope="session")
def children(warm: WarmProcess) -> Children:
    """Runs commands that are killed or find a full disk."""
    return Children(warm)


@pytest.fixture(scope="session")
def ranks(warm: WarmProcess) -> Ranks:
    """Runs commands on several processes."""
    return Ranks(warm)


@pytest.fixture(scope="session")
def scripts(warm: WarmProcess) -> Scripts:
    """Runs scripts with an environment of their own."""
    return Scripts(warm)


@pytest.fixture(scope="session", autouse=True)
def _fast() -> Iterator[None]:
    """Figures are not rendered, and files written by this process need not survive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "save", save_blank)
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are rendered in this test."""
    monkeypatch.setattr(drawing, "save", render)
