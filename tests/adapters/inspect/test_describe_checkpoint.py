"""The description of one model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from inspected import printed
from models import LLAMA, LONG, load, save, weights

from regraft.adapters.inspect.descriptions import RoleSize
from regraft.adapters.inspect.inspect import inspect_model
from regraft.adapters.reader import RECORD
from regraft.errors import CheckpointError
from regraft.merge.job import merge_models


def test_a_checkpoint_is_described_by_its_headers_and_config(folders: dict[str, Path]) -> None:
    result = inspect_model(str(folders["base"]))
    state = load(folders["base"])
    assert result.kind == "checkpoint"
    assert result.architecture == "LlamaForCausalLM"
    assert result.parameters == sum(t.numel() for t in state.values())
    assert result.bytes == 2 * result.parameters
    assert (result.dtypes, result.shards) == ({"bfloat16": len(state)}, 2)
    assert (result.layers, result.hidden_size) == (2, 64)
    assert (result.heads, result.kv_heads, result.head_dim) == (4, 2, 16)
    assert (result.vocabulary, result.tied) == (80, False)
    assert result.context.theta == 10000
    assert result.context.max_position_embeddings == 256
    assert result.context.longest_wavelength == pytest.approx(
        2 * math.pi * 10000 ** (14 / 16), rel=1e-9
    )
    assert result.fingerprint.startswith("sampled:")
    assert result.roles["projection"] == RoleSize(tensors=14, parameters=61440)
    assert (result.unknown_tensors, result.tokenizer_max_length) == ([], None)
    assert "theta 10000, 256" in printed(result)


def test_stored_tied_head_is_counted_once(tmp_path: Path) -> None:
    config = {**LLAMA, "tie_word_embeddings": True}
    state = weights(config)
    once = inspect_model(str(save(tmp_path / "once", config, state)))
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    twice = inspect_model(str(save(tmp_path / "twice", config, state)))
    assert once.tied
    assert twice.tied
    assert once.parameters == twice.parameters


def test_unknown_tensors_and_short_tokenizer_limit_are_reported(tmp_path: Path) -> None:
    state = weights(LLAMA) | {"model.layers.0.self_attn.rank.weight": torch.ones(3)}
    folder = save(tmp_path / "model", {**LLAMA, **LONG}, state)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 256}')
    result = inspect_model(str(folder))
    assert result.unknown_tensors == ["model.layers.0.self_attn.rank.weight"]
    assert result.parameters == sum(t.numel() for t in state.values()) - 3
    assert result.tokenizer_max_length == 256
    text = printed(result)
    assert "truncates at 256" in text
    assert "self_attn.rank.weight" in text


def test_tokenizer_without_limit_is_none(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", LLAMA, weights(LLAMA))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert inspect_model(str(folder)).tokenizer_max_length is None


def test_a_model_without_rope_is_no_error(tmp_path: Path) -> None:
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 1,
        "n_head": 2, "n_positions": 64, "vocab_size": 50,
    }  # fmt: skip
    result = inspect_model(str(save(tmp_path / "gpt2", config, weights(config))))
    assert (result.context, result.context_text) == (None, "no RoPE in the config")
    assert (result.layers, result.hidden_size, result.kv_heads) == (1, 32, 2)
    assert "no RoPE" in printed(result)


def test_contradictory_config_is_printed_not_raised(tmp_path: Path) -> None:
    config = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    result = inspect_model(str(save(tmp_path / "model", config, weights(LLAMA))))
    assert result.context is None
    assert "contradicts itself" in printed(result)


def test_markup_in_a_name_is_printed_literally(tmp_path: Path) -> None:
    folder = save(tmp_path / "[bold]m[/bold]", LLAMA, weights(LLAMA))
    assert "[bold]m[/bold]" in printed(inspect_model(str(folder)), 200)


def test_graft_names_its_adapter_and_checkpoint(folders: dict[str, Path]) -> None:
    result = inspect_model(str(folders["graft"]))
    assert result.kind == "graft"
    assert result.made.adapter == str(folders["lora"])
    assert result.made.checkpoint == str(folders["derivative"])
    assert result.context.theta == LONG["rope_theta"]
    assert "Made from" in printed(result)


def test_merge_names_its_method_and_inputs(folders: dict[str, Path], tmp_path: Path) -> None:
    base = folders["base"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: ties\nbase_model: {base}\nparameters: {{weight: 1}}\n"
        f"models: [{{model: {base}}}]\n"
    )
    merge_models(recipe, tmp_path / "merged")
    result = inspect_model(str(tmp_path / "merged"))
    assert (result.kind, result.made.inputs) == ("merge", [str(base)])
    assert "ties (native)" in printed(result)


def test_a_broken_record_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = save(tmp_path / "model", LLAMA, weights(LLAMA))
    (folder / RECORD).write_text('{"kind": "graft"}')
    with pytest.raises(CheckpointError, match=r"regraft\.json lacks the key 'adapter'"):
        inspect_model(str(folder))


@pytest.mark.parametrize("named", ["LlamaForCausalLM", 3, [["LlamaForCausalLM"]], [None], {}, []])
def test_architectures_of_another_type_name_none(tmp_path: Path, named: object) -> None:
    folder = save(tmp_path / "m", LLAMA, weights(LLAMA))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": named}))
    assert inspect_model(folder).architecture is None
