"""The toys on which what the documentation prints is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_ins import make_workplace, servers


@pytest.fixture(scope="package")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `make_workplace`."""
    return make_workplace(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="package")
def addresses(toys: Path) -> Iterator[dict[str, str]]:
    """The addresses of `servers`."""
    with servers(toys) as found:
        yield found


@pytest.fixture
def workplace(toys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, as the working directory."""
    monkeypatch.chdir(toys)
    monkeypatch.setattr("regraft.demo.job.RECIPE", toys / "examples" / "demo.yaml")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return toys
