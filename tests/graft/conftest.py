"""Models for graft jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import LLAMA, changed, family, save, weights


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, extended, derivative and `other`, a second derivative."""
    folder = tmp_path_factory.mktemp("models")
    family(folder)
    save(folder / "other", LLAMA, changed(weights(LLAMA), rank=None, size=0.03, seed=7))
    return folder
