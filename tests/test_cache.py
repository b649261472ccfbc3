"""The user's cache folder: answers kept between runs, and never a reason to fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import LLAMA

from regraft import cache
from regraft.checkpoint.hf import roles as module

NAMES = ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight", "x.y"]


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    module._cached_model_tensors.cache_clear()
    yield tmp_path / "cache" / "roles"
    module._cached_model_tensors.cache_clear()


def ask() -> dict[str, module.Role]:
    module._cached_model_tensors.cache_clear()
    return module.tensor_roles(LLAMA, NAMES)


def test_roles_are_the_same_from_the_cache_without_asking_transformers(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask()
    assert len(list(entries.iterdir())) == 1

    def refuse(_: dict) -> None:
        raise AssertionError("asked transformers again")

    monkeypatch.setattr(module, "_read_model_class", refuse)
    assert ask() == first
    monkeypatch.setattr(module, "version", lambda _: "another release")
    with pytest.raises(AssertionError, match="again"):
        ask()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"kinds": {}}'])
def test_a_damaged_entry_is_found_anew(entries: Path, damage: str) -> None:
    first = ask()
    (entry,) = entries.iterdir()
    entry.write_text(damage)
    assert ask() == first
    assert json.loads(entry.read_text())["kinds"]


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "file"))
    assert ask()["lm_head.weight"].kind == "head"
    monkeypatch.setenv("REGRAFT_CACHE", "")
    assert ask()["lm_head.weight"].kind == "head"


def test_the_oldest_entries_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_MOST", 3)
    for i in range(5):
        cache.Entry("numbers", str(i)).write(i)
    assert len(list((tmp_path / "numbers").iterdir())) == 3
    assert cache.Entry("numbers", "4").read() == 4
