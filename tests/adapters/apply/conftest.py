"""Adapters that tests of apply share."""

from __future__ import annotations

from pathlib import Path

import models
import pytest

from regraft.adapters.extract.extract import extract_lora


@pytest.fixture(scope="session")
def adapter(family, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "a"
    extract_lora(*family[:2], out, rank=4, dtype="float32", verify=False)
    return out


@pytest.fixture(scope="session")
def whole_adapter(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(base, extended, adapter) in layout exact, every tensor changed."""
    root = tmp_path_factory.mktemp("whole")
    base = models.weights(models.LLAMA)
    extended = models.changed(base, rank=4, size=0.03, seed=1, names="")
    for name in extended:
        if "norm" in name:
            extended[name] = extended[name] + 0.1
    b = models.save(root / "base", models.LLAMA, base)
    e = models.save(root / "extended", {**models.LLAMA, **models.LONG}, extended)
    extract_lora(b, e, root / "a", rank=4, layout="exact", dtype="float32", verify=False)
    return b, e, root / "a"
