"""Folders of every kind that `regraft inspect` describes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import family

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora

NAMES = ("base", "extended", "derivative", "lora", "other", "graft")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, an extended model, a derivative, an adapter of each, and a graft, in bfloat16."""
    root = tmp_path_factory.mktemp("inspect")
    base, extended, derivative = family(root, dtype=torch.bfloat16, shards=2)
    extract_lora(base, extended, root / "lora", rank=4, verify=False)
    extract_lora(base, derivative, root / "other", rank=6, layout="compact", verify=False)
    apply_lora(root / "lora", derivative, root / "graft")
    return {name: root / name for name in NAMES}
