"""A config.json that does not describe its tensors is refused before a model is built from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import yaml

from regraft.checkpoint.hf import roles
from regraft.errors import InputError
from regraft.merge.job import merge_models


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers: 3, and its tensors have 2"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers: 2, and its tensors have 2"),
        ({"vocab_size": 10**12}, "vocab_size: 1000000000000, and its tensors have 80"),
        ({"hidden_size": 1 << 40}, "hidden_size: "),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(
    change: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "_read_model_class", None)
    folder = models.save(tmp_path / "model", models.LLAMA, models.weights(models.LLAMA))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    recipe = tmp_path / "recipe.yaml"
    models_ = [{"model": str(folder), "parameters": {"weight": 1}}]
    recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": models_}))
    with pytest.raises(InputError) as caught:
        merge_models(recipe, tmp_path / "out", dry_run=True)
    assert expected in str(caught.value) or "tensors; correct the config" in str(caught.value)
    assert "line 3" in str(caught.value)


def test_an_output_folder_inside_an_input_is_refused(tmp_path: Path) -> None:
    folder = models.save(tmp_path / "model", models.LLAMA, models.weights(models.LLAMA))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {folder}}}]\n")
    for out in (folder / "merged", folder, tmp_path):
        with pytest.raises(InputError):
            merge_models(recipe, out, overwrite=True)
    assert (folder / "model.safetensors").is_file()
