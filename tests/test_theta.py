"""`regraft theta` takes what it needs from a model's config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regraft import cli, theta_for
from regraft.errors import InputError, RegraftError
from regraft.rope import ntk, scaling_law

SMOLLM = {
    "model_type": "llama", "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
    "rope_theta": 100000.0, "max_position_embeddings": 8192, "vocab_size": 49152,
    "num_hidden_layers": 30, "intermediate_size": 1536,
}  # fmt: skip


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder that looks like a model; its weights are rubbish, which nobody reads."""
    folder = tmp_path / "smollm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMOLLM))
    (folder / "model.safetensors").write_bytes(b"not a header")
    return folder


def laws(*argv: str | Path) -> dict:
    done = CliRunner().invoke(cli.app, ["theta", *map(str, argv), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_length_theta_and_head_size_come_from_the_model(model):
    report = laws(model, "16k")
    assert (report["trained"], report["base"], report["head_dim"]) == (8192, 100000.0, 64)
    assert report["theta"] == round(scaling_law(1e5, 8192, 16384))
    assert report["laws"]["ntk"]["theta"] == round(ntk(1e5, 8192, 16384, 64)) == 204522


def test_base_may_be_the_model_and_numbers_stand_before_it(model):
    report = laws("4k", "16k", "--base", model)
    assert (report["trained"], report["base"], report["head_dim"]) == (4096, 100000.0, 64)
    report = laws(model, "16k", "--base", "5e5", "--head-dim", "128")
    assert (report["trained"], report["base"], report["head_dim"]) == (8192, 500000.0, 128)


def test_the_defaults_are_llama_3s():
    assert theta_for("8k", 262144).theta == 283461213
    assert theta_for(8192, "256k").head_dim == 128


def test_a_model_with_scaled_rope_is_said(model):
    config = {**SMOLLM, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    (model / "config.json").write_text(json.dumps(config))
    assert any("the laws are for plain RoPE" in line for line in laws(model, "64k")["warnings"])


def test_models_that_are_not_there_or_say_too_little_are_refused(model, monkeypatch):
    with pytest.raises(RegraftError, match="does not exist"):
        theta_for("no/such/model", "16k")
    with pytest.raises(InputError, match="'8q' is not a token count"):
        theta_for("8q", "16k")
    contradiction = {**SMOLLM, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    (model / "config.json").write_text(json.dumps(contradiction))
    with pytest.raises(RegraftError, match=r"smollm: config\.json contradicts itself"):
        theta_for(str(model), "16k")
    (model / "config.json").write_text(
        json.dumps({key: value for key, value in SMOLLM.items() if key != "hidden_size"})
    )
    with pytest.raises(InputError, match="no usable hidden_size"):
        theta_for(str(model), "16k")
