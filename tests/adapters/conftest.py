"""Models that tests of adapters share."""

from __future__ import annotations

from pathlib import Path

import models
import pytest


@pytest.fixture(scope="session")
def family(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A base, an extended model and a derivative, which no test changes."""
    return models.family(tmp_path_factory.mktemp("family"))
