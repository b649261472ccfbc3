"""A recipe that several tests build."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def recipe_of_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe in the current folder, of one document of one character."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("x")
    Path("recipe.yaml").write_text(
        "sources: [{name: one, licence: CC0-1.0, text: a.txt}]\noutput: {tokenizer: bytes}\n"
    )
    return "recipe.yaml"
