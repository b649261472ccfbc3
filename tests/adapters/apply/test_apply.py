"""apply on real files: the same weights as PEFT, rounded once."""

from __future__ import annotations

import json
import math

import models
import pytest
import torch
from applied import config_of, made_by_peft, same

from regraft.adapters.apply.apply import apply_lora
from regraft.errors import CheckpointError, InputError
from regraft.records import to_json

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's own, and ours where none is tested
]


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "up_proj"], "use_rslora": True},
        {
            "target_modules": "all-linear",
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 7},
            "alpha_pattern": {"k_proj": 1, r"layers\.0.*up_proj": 3},
        },
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
        {"target_modules": ["embed_tokens", "lm_head", "o_proj"]},
        {"target_modules": r".*layers\.1\.mlp.*_proj"},
        {"target_modules": ["q_proj"], "fan_in_fan_out": True},
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    ],
    ids=lambda config: ",".join(map(str, config.values()))[:40],
)
def test_adapters_made_by_peft_are_merged_as_peft_merges_them(config, family, tmp_path):
    expected = made_by_peft(tmp_path / "a", family[0], **config)
    before = models.load(family[0])
    assert any(not torch.equal(before[name], expected[name]) for name in before)
    apply_lora(tmp_path / "a", family[0], tmp_path / "out")
    result = models.load(tmp_path / "out")
    assert result.keys() == before.keys()
    same(result, expected)


def test_a_switch_that_peft_ignores_on_linear_layers_is_ignored(family, tmp_path):
    """fan_in_fan_out is for GPT-2's Conv1D; on a square nn.Linear it must not transpose."""
    expected = made_by_peft(tmp_path / "a", family[0], target_modules=["q_proj"])
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fan_in_fan_out": True}))
    apply_lora(tmp_path / "a", family[0], tmp_path / "out")
    same(models.load(tmp_path / "out"), expected)


def test_conv1d_weights_stored_in_by_out_are_merged_as_peft_merges_them(tmp_path):
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 2,
        "n_head": 2, "vocab_size": 50, "n_positions": 64, "max_position_embeddings": 64,
        "rope_theta": 1e4,
    }  # fmt: skip
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    base = models.save(tmp_path / "base", config, state)
    expected = made_by_peft(
        tmp_path / "a", base, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True
    )
    apply_lora(tmp_path / "a", base, tmp_path / "out", context="checkpoint")
    same(models.load(tmp_path / "out"), expected)


@pytest.mark.parametrize("stored", [False, True])
def test_a_tied_embedding_moves_its_head_too(stored, tmp_path):
    weights = models.weights(models.TIED)
    base = models.save(tmp_path / "base", models.TIED, weights)
    expected = made_by_peft(tmp_path / "a", base, target_modules=["embed_tokens", "q_proj"])
    if stored:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        models.save(base, models.TIED, weights)
    apply_lora(tmp_path / "a", base, tmp_path / "out")
    result = models.load(tmp_path / "out")
    assert ("lm_head.weight" in result) == stored
    same(result, expected)
    if stored:
        assert torch.equal(result["lm_head.weight"], result["model.embed_tokens.weight"])


def test_a_change_of_the_head_does_not_fit_a_tied_model(family, tmp_path):
    made_by_peft(tmp_path / "a", family[0], target_modules=["lm_head"])
    weights = models.weights(models.TIED)
    for extra in ({}, {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}):
        target = models.save(tmp_path / "tied", models.TIED, weights | extra)
        with pytest.raises(CheckpointError, match="it is tied to the embedding there"):
            apply_lora(tmp_path / "a", target, tmp_path / "out", force=True)


@pytest.mark.parametrize("scale", [0.5, -1.0, 0.0])
def test_scale_scales_the_change(scale, whole_adapter, tmp_path):
    base, extended, lora = whole_adapter
    apply_lora(lora, base, tmp_path / "out", scale=scale)
    before, after, result = models.load(base), models.load(extended), models.load(tmp_path / "out")
    same(result, {name: w + scale * (after[name] - w) for name, w in before.items()}, 2e-6)


def test_a_replacement_cannot_be_scaled(family, tmp_path):
    made_by_peft(tmp_path / "a", family[0], target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(InputError, match=r"--scale 0\.5 cannot scale"):
        apply_lora(tmp_path / "a", family[0], tmp_path / "out", scale=0.5)


def test_a_negative_scale_takes_a_change_back(whole_adapter, tmp_path):
    base, extended, lora = whole_adapter
    apply_lora(lora, extended, tmp_path / "out", scale=-1.0, context="theta=10000,length=256")
    same(models.load(tmp_path / "out"), models.load(base), 2e-6)
    assert config_of(tmp_path / "out")["max_position_embeddings"] == 256


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_sum_is_rounded_once_and_the_loss_told(dtype, family, adapter, tmp_path):
    target = models.save(tmp_path / "t", models.LLAMA, models.load(family[2]), dtype=dtype)
    record = apply_lora(adapter, target, tmp_path / "out")
    before, result = models.load(target), models.load(tmp_path / "out")
    base, extended = models.load(family[0]), models.load(family[1])
    lost = total = 0.0
    for name, w in before.items():
        assert result[name].dtype == dtype
        if "proj" not in name:
            assert torch.equal(result[name], w)
            continue
        change = extended[name].double() - base[name].double()
        exact = w.double() + change
        assert (
            float((result[name].double() - exact).abs().max())
            <= 1.01 * float((exact.to(dtype).double() - exact).abs().max()) + 1e-7
        )
        squared = float(change.square().sum())
        loss = float((result[name].double() - exact).square().sum())
        fact = record.tensors[name]
        assert fact.change_norm == pytest.approx(math.sqrt(squared), rel=1e-4)
        if dtype.itemsize == 2:
            assert fact.lost_to_storage == pytest.approx(math.sqrt(loss / squared), rel=1e-3)
        lost, total = lost + loss, total + squared
    assert record.totals.tensors == 14
    if dtype.itemsize == 2:
        assert record.totals.lost_to_storage == pytest.approx(math.sqrt(lost / total), rel=1e-3)
    else:
        assert record.totals.lost_to_storage == 0
    assert to_json(record) == json.loads((tmp_path / "out/regraft.json").read_text())


def test_a_matrix_longer_than_a_block_is_the_same(family, tmp_path, monkeypatch):
    from regraft.adapters.apply import stream as module

    expected = made_by_peft(tmp_path / "a", family[0], target_modules="all-linear")
    monkeypatch.setattr(module, "_BLOCK", 64 * 7)
    apply_lora(tmp_path / "a", family[0], tmp_path / "out")
    same(models.load(tmp_path / "out"), expected)
