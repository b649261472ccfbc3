"""Exported adapters and models: PEFT, vLLM and `regraft apply` read them; numbers that overflow."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from train_recipes import LORA, write_recipe
from typer.testing import CliRunner

from regraft import cli
from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.peft_check import peft_deltas
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import RegraftError
from regraft.train.job import train_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_lora_is_grafted_by_apply_with_norms_and_context(trained_model, data_folder, tmp_path):
    adapter, graft, model = tmp_path / "adapter", tmp_path / "graft", tmp_path / "model"
    train_model(write_recipe(tmp_path, data_folder, LORA, trained_model), adapter, device="cpu")
    folded = LORA + "export: {{kind: model}}\n"
    train_model(write_recipe(tmp_path, data_folder, folded, trained_model), model, device="cpu")
    line = ["apply", adapter, trained_model, "-o", graft, "--json"]
    done = CliRunner().invoke(cli.app, [str(part) for part in line])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["context"]["output"]["max_position_embeddings"] == 256
    ours, theirs = load_file(graft / "model.safetensors"), load_file(model / "model.safetensors")
    base = load_file(trained_model / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    changed = {name for name in base if not torch.equal(base[name], ours[name])}
    assert len([name for name in changed if "norm" in name]) == 5
    assert len([name for name in changed if "proj" in name]) == 14
    assert len(changed) == 19
    inspected = CliRunner().invoke(cli.app, ["inspect", str(adapter), "--json"])
    assert inspected.exit_code == 0, inspected.output


def test_the_lora_of_the_default_recipe_loads_whole_in_peft_and_vllm(
    trained_model, data_folder, tmp_path
):
    """No dense differences, one rank and alpha, no modules_to_save; PEFT's sum is apply's."""
    default = LORA.replace(", norms: true", "")
    adapter = tmp_path / "adapter"
    train_model(write_recipe(tmp_path, data_folder, default, trained_model), adapter, device="cpu")
    assert not (adapter / "regraft-differences.safetensors").exists()
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert not any(config[key] for key in ("rank_pattern", "alpha_pattern", "modules_to_save"))
    apply_lora(adapter, trained_model, tmp_path / "graft")
    base, ours = (load_file(at / "model.safetensors") for at in (trained_model, tmp_path / "graft"))
    changed = {name for name in base if not torch.equal(base[name], ours[name])}
    rebuilt = dict(peft_deltas(Checkpoint.open(trained_model).config, adapter))
    assert changed == {f"{name}.weight" for name in rebuilt}
    for name, delta in rebuilt.items():
        expected = base[f"{name}.weight"] + delta
        torch.testing.assert_close(ours[f"{name}.weight"], expected, rtol=1e-6, atol=1e-7)
    card = (adapter / "README.md").read_text()
    assert "| PEFT | yes |" in card
    assert "| vLLM | with --max-lora-rank 8 |" in card


def test_numbers_too_large_for_the_exported_type_are_refused(data_folder, tmp_path):
    text = LORA.replace("rate: 1e-3", "rate: 1e5, schedule: {{kind: constant}}")
    text = text.replace("steps: 2, batch: 2", "steps: 1, batch: 2")
    recipe = write_recipe(tmp_path, data_folder, text + "export: {{dtype: float16}}\n")
    with pytest.raises(RegraftError, match="too large for float16"):
        train_model(recipe, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
