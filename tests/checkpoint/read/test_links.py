"""Links out of a model or adapter folder are neither followed nor copied; the Hub cache's are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from models import LLAMA, family, save, weights
from peft_folders import adapter

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError


def moved_out(path: Path, outside: Path) -> None:
    """Put a link in the file's place and the file into another folder."""
    outside.mkdir(exist_ok=True)
    shutil.move(path, outside / path.name)
    path.symlink_to(outside / path.name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_whose_files_lie_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "m", LLAMA, weights(LLAMA))
    moved_out(folder / name, tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"{name} is a link to a file outside the folder"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_whose_files_lie_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = adapter(tmp_path / "a")
    moved_out(folder / name, tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"{name} is a link to a file outside the folder"):
        Adapter.open(folder)


def test_what_a_link_names_is_not_copied(tmp_path: Path) -> None:
    base, _, _ = family(tmp_path)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "id_rsa").write_text("the key")
    (base / "chat_template.jinja").symlink_to(secret / "id_rsa")
    (base / "notes").symlink_to(secret)  # a folder is not walked into
    (base / "dangling.txt").symlink_to("/nowhere/at/all")
    (base / "modeling_evil.py").write_text("raise SystemExit")
    (base / "licence.txt").write_text("free")
    (base / "LICENCE").symlink_to("licence.txt")  # within the folder
    with pytest.warns(UserWarning, match=r"chat_template.jinja is a link to a file outside"):
        apply_lora(adapter(tmp_path / "a"), base, tmp_path / "out", force=True)
    written = {path.name: path for path in (tmp_path / "out").rglob("*")}
    assert not {"chat_template.jinja", "id_rsa", "dangling.txt", "modeling_evil.py"} & {*written}
    assert written["LICENCE"].read_text() == "free"
    assert not written["LICENCE"].is_symlink()


def test_the_layout_of_the_hub_cache_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", LLAMA, weights(LLAMA))
    cache = tmp_path / "models--org--m"
    snapshot, blobs = cache / "snapshots" / "c0ffee", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        shutil.copy(path, blobs / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    with Checkpoint.open(snapshot) as checkpoint:
        assert checkpoint.other_files() == ["generation_config.json"]
        assert checkpoint.file("generation_config.json") is not None
        assert checkpoint.tensor("model.norm.weight").numel() == 64
    (tmp_path / "link").symlink_to(snapshot)
    with Checkpoint.open(tmp_path / "link") as checkpoint:
        assert checkpoint.other_files() == ["generation_config.json"]
    (snapshot / "vocab.txt").symlink_to(tmp_path / "m" / "config.json")
    with (
        pytest.warns(UserWarning, match="vocab.txt is a link"),
        Checkpoint.open(snapshot) as checkpoint,
    ):
        assert checkpoint.other_files() == ["generation_config.json"]
