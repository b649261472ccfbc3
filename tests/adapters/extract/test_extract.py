"""extract-lora on real files: what PEFT and transformers make of the adapter."""

from __future__ import annotations

import json
import re

import models
import pytest
import torch
from extracted import (
    LEAVES,
    changes,
    everything_changed,
    merged_by_peft,
    record_of,
    relative,
    save_pair,
)
from safetensors.torch import load_file

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.records import to_json


def test_portable_is_what_every_server_reads(family, tmp_path):
    record = extract_lora(*family[:2], tmp_path / "a", rank=8)
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8
    assert config["target_modules"] == LEAVES
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["modules_to_save"] is None
    assert (config["use_dora"], config["use_rslora"], config["bias"]) == (False, False, "none")
    tensors = load_file(tmp_path / "a/adapter_model.safetensors")
    assert len(tensors) == 2 * 14
    for name, tensor in tensors.items():
        assert re.fullmatch(
            rf"base_model\.model\.model\.layers\.\d\.\w+\.({'|'.join(LEAVES)})\.lora_[AB]\.weight",
            name,
        )
        assert tensor.dtype == torch.bfloat16
        assert tensor.shape[0 if "lora_A" in name else 1] == 8
    assert to_json(record) == record_of(tmp_path / "a")


@pytest.mark.parametrize("layout", ["portable", "compact", "exact"])
def test_peft_rebuilds_what_was_extracted_in_every_layout(layout, tmp_path):
    """Twelve layers, a rank of its own for each: a pattern for layers.1 must not hit layers.11."""
    weights = models.weights(models.DEEP)
    extended = dict(weights)
    for layer in range(12):
        part = models.changed(
            weights, rank=1 + layer, size=0.03, seed=layer, names=f"layers.{layer}.self_attn"
        )
        extended |= {name: part[name] for name in part if f"layers.{layer}.self_attn" in name}
    base, long = save_pair(tmp_path, models.DEEP, weights, extended)
    extract_lora(base, long, tmp_path / "a", rank="auto", layout=layout, dtype="float32")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    if layout == "portable":
        assert config["r"] == 12
        assert config["rank_pattern"] == {}
    else:
        assert len(config["rank_pattern"]) == 11 * 4
        assert config["rank_pattern"] == config["alpha_pattern"]
    merged = merged_by_peft(base, tmp_path / "a")
    ours = changes(tmp_path / "a")
    assert len(ours) == 48
    for name, tensor in merged.items():
        expected = extended[name]
        torch.testing.assert_close(tensor, expected, atol=2e-6, rtol=0, msg=name)
        if name in ours:
            assert relative(ours[name], expected.double() - weights[name].double()) < 1e-4


def test_logits_of_base_and_adapter_are_those_of_the_extended_model(family, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, long, _ = family
    extract_lora(base, long, tmp_path / "a", rank=4, dtype="float32")
    tokens = torch.arange(1, 60)[None]
    expected = AutoModelForCausalLM.from_pretrained(long)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.rope_parameters = expected.config.rope_parameters
    model.model.rotary_emb = expected.model.rotary_emb
    with torch.no_grad():
        plain = model(tokens).logits
        adapted = PeftModel.from_pretrained(model, tmp_path / "a")(tokens).logits
        truth = expected(tokens).logits
    torch.testing.assert_close(adapted, truth, atol=1e-5, rtol=1e-4)
    assert (plain - truth).abs().max() > 100 * (adapted - truth).abs().max()


@pytest.mark.parametrize("config", [models.LLAMA, models.TIED, models.QWEN2, models.GEMMA2])
def test_exact_at_full_rank_carries_the_whole_difference(config, tmp_path):
    weights, extended = everything_changed(config)
    base, long = save_pair(tmp_path, config, weights, extended)
    record = extract_lora(base, long, tmp_path / "a", rank=96, layout="exact", dtype="float32")
    assert not record.extraction.not_captured
    assert record.totals.share_of_all_change_not_captured < 1e-9
    kinds = {name.rpartition(".")[2] for name in record.differences}
    assert kinds == ({"weight", "bias"} if config is models.QWEN2 else {"weight"})
    apply_lora(tmp_path / "a", base, tmp_path / "out", context="adapter")
    rebuilt = models.load(tmp_path / "out")
    assert rebuilt.keys() == extended.keys()
    for name, tensor in rebuilt.items():
        torch.testing.assert_close(tensor, extended[name], atol=3e-7, rtol=3e-7, msg=name)
