"""Finding the files of a model, and what is said where they are not all there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_files import model, refusal, two_shards
from safetensors.torch import save_file

from regraft.checkpoint.read.files import INDEX


def test_missing_path_and_file_and_empty_folder_are_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "a" / "b" / "c")
    for name in ("./absent", "../absent", "absent", "a/b/c", "a\0/b"):
        assert "does not exist" in refusal(name)
    assert "possible Hub id" in refusal("absent/a..b")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(tmp_path / "empty")


def test_missing_and_broken_config_are_named(tmp_path: Path) -> None:
    model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    assert "config.json is not valid JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    assert "config.json is not valid JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "config.json is not a JSON object" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "no config.json" in refusal(tmp_path)


def test_adapter_is_not_taken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"t": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    assert "is an adapter" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "is an adapter" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused_with_the_conversion(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"x")
    message = refusal(tmp_path)
    assert "pickled" in message
    assert "save_pretrained" in message


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "no safetensors weights" in refusal(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    model(tmp_path, two_shards())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    message = refusal(tmp_path)
    assert "lacks model-00002-of-00002.safetensors" in message
    assert "finish the download" in message


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/../../x", "", "a\\..\\b"])
def test_index_that_points_outside_is_refused(tmp_path: Path, shard: str) -> None:
    model(tmp_path, two_shards())
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert "not a file inside the model" in refusal(tmp_path)


def test_a_shard_whose_name_no_file_can_have_is_missing(tmp_path: Path) -> None:
    model(tmp_path, two_shards())
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "x" * 2000
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert "lacks xxx" in refusal(tmp_path)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    model(tmp_path, two_shards())
    good = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    one, two = sorted(two_shards())
    for weight_map, says in (
        ({**good, "ghost": one}, "'ghost' in model-00001-of-00002.safetensors, but it is in no"),
        ({**good, "model.norm.weight": one}, f"but it is in {two}"),
        ({k: v for k, v in good.items() if k != "model.norm.weight"}, "does not list"),
    ):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        assert says in refusal(tmp_path)
    for text, says in (("{", "not valid JSON"), ("{}", "weight_map"), ('{"weight_map": 3}', "wei")):
        (tmp_path / INDEX).write_text(text)
        assert says in refusal(tmp_path)
