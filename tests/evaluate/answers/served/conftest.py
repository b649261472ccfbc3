"""A small model to serve, and no waiting between tries."""

from __future__ import annotations

from pathlib import Path

import pytest
from served import readable_toy

from regraft.evaluate.answers.served import model, probe
from regraft.evaluate.report import files


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("REGRAFT_ENDPOINT_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for module in (probe, model):
        monkeypatch.setattr(module, "PAUSE", 0.001)
    monkeypatch.setattr(files, "draw", lambda folder, result: [])


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return readable_toy(tmp_path_factory.mktemp("served") / "toy")
