"""Text of a training: padding, and text that changes during an interrupted run."""

from __future__ import annotations

import json
import shutil

import pytest
from train_recipes import LORA, RECIPE, read_losses, write_recipe

from regraft.errors import InputError, RegraftError
from regraft.train.job import train_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_text_that_changed_under_a_resume_is_refused(data_folder, tmp_path):
    own = tmp_path / "data_folder"
    own.mkdir()
    shutil.copy(data_folder / "short.jsonl", own)
    recipe = write_recipe(tmp_path, own, RECIPE.replace("rate: 1e-3", "rate: 1e30"))
    with pytest.raises(RegraftError, match=r"became .* at step \d"):
        train_model(recipe, tmp_path / "out", device="cpu")
    text = (own / "short.jsonl").read_text()
    (own / "short.jsonl").write_text(text.replace("the", "that"))
    with pytest.raises(InputError, match="'short' has changed since the run was interrupted"):
        train_model(recipe, tmp_path / "out", device="cpu", resume=True)


def test_padding_is_a_token_of_the_model(trained_model, data_folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(trained_model, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["pad_token"] = "<added>"
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    train_model(write_recipe(tmp_path, data_folder, LORA, model), tmp_path / "out", device="cpu")
    train_model(
        write_recipe(tmp_path / "b", data_folder, LORA, trained_model),
        tmp_path / "b" / "out",
        device="cpu",
    )
    assert read_losses(tmp_path / "out") == read_losses(tmp_path / "b" / "out")
