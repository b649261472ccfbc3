"""Toy models that tests of evaluation share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluated import toy
from models import LONG

from regraft.evaluate.answers.model import LanguageModel, Source

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Toy models with random weights; donor and graft have a longer context."""
    root = tmp_path_factory.mktemp("models")
    return {
        "recipient": toy(root / "recipient"),
        "donor": toy(root / "donor", seed=1, **LONG),
        "graft": toy(root / "graft", seed=2, **LONG),
    }


@pytest.fixture(scope="session")
def model(folders: dict[str, Path]) -> LanguageModel:
    """The recipient."""
    return Source("m", str(folders["recipient"])).load(CPU)
