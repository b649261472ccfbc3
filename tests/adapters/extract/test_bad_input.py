"""Models that extract-lora refuses, and the sentence for each."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from extracted import State, everything_changed, save_pair
from safetensors.torch import save_file

from regraft.adapters import writer
from regraft.adapters.extract.extract import extract_lora
from regraft.errors import CheckpointError, InputError, LineageError


def broken(folder: Path, source: Path, change: Any) -> Path:
    """A copy of a model with one thing wrong."""
    state = models.load(source)
    config = json.loads((source / "config.json").read_text())
    change(state, config)
    return models.save(folder, config, state)


def replace_one(name: str, value: Any) -> Any:
    def change(state: State, config: dict[str, Any]) -> None:
        state[name] = value(state[name])

    return change


DOWN = "model.layers.1.mlp.down_proj.weight"


NORM = "model.layers.1.input_layernorm.weight"


def poisoned(value: float) -> Any:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return change


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [DOWN, NORM, "lm_head.weight"])
@pytest.mark.parametrize("which", [0, 1])
def test_nan_and_infinity_are_found_and_named(which, name, value, family, tmp_path):
    pair = list(family[:2])
    pair[which] = broken(tmp_path / "bad", pair[which], replace_one(name, poisoned(value)))
    with pytest.raises(CheckpointError, match=f"'{name}' of .*bad holds NaN") as refused:
        extract_lora(*pair, tmp_path / "a", rank=2, verify=False)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "a").exists()


def test_a_nan_between_the_samples_is_found(tmp_path):
    config = {**models.LLAMA, "intermediate_size": 512}
    weights, extended = everything_changed(config, rank=2)
    extended[DOWN].view(-1)[1::2][::7] = math.nan
    base, long = save_pair(tmp_path, config, weights, weights)
    models.save(long, {**config, **models.LONG}, extended)
    with pytest.raises(CheckpointError, match="holds NaN"):
        extract_lora(base, long, tmp_path / "a", rank=2)


def gone(name: str) -> Any:
    return lambda state, config: state.pop(name)


def other_type(state: State, config: dict[str, Any]) -> None:
    config["model_type"] = "mistral"
    config["architectures"] = ["MistralForCausalLM"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (gone(DOWN), f"lacks tensor '{DOWN}'"),
        (replace_one(DOWN, lambda t: t[:, :-1].contiguous()), f"'{DOWN}' is .* and "),
        (replace_one(NORM, lambda t: t[:-1].contiguous()), f"'{NORM}' is .* and "),
        (replace_one(DOWN, lambda t: t.to(torch.float8_e4m3fn)), "not quantised"),
        (replace_one(DOWN, lambda t: t.to(torch.int8)), "not quantised"),
        (other_type, "is a llama model and .* a mistral model"),
        (
            lambda state, config: (
                state.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)})
                or config.update({"attention_bias": True})
            ),
            "has tensor 'model.layers.0.self_attn.q_proj.bias', which",
        ),
    ],
)
def test_models_that_do_not_belong_together_are_refused_by_name(change, message, family, tmp_path):
    bad = tmp_path / "bad"
    state, config = models.load(family[1]), json.loads((family[1] / "config.json").read_text())
    change(state, config)
    models.save(bad, config, {})
    save_file({k: v.contiguous() for k, v in state.items()}, bad / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as refused:
        extract_lora(family[0], bad, tmp_path / "a")
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_a_quantised_base_is_refused(family, tmp_path):
    state = {k: v.contiguous() for k, v in models.load(family[0]).items()}
    state[DOWN] = state[DOWN].to(torch.int8)
    models.save(tmp_path / "bad", models.LLAMA, {})
    save_file(state, tmp_path / "bad/model.safetensors")
    with pytest.raises(CheckpointError, match=r"bad is stored as torch\.int8"):
        extract_lora(tmp_path / "bad", family[1], tmp_path / "a")


def test_swapped_identical_and_unrelated_models_are_refused(family, tmp_path):
    base, long, _ = family
    with pytest.raises(LineageError, match="swap them"):
        extract_lora(long, base, tmp_path / "a")
    with pytest.raises(InputError, match="hold the same weights"):
        extract_lora(base, base, tmp_path / "a", force=True)
    unrelated = models.save(
        tmp_path / "x", {**models.LLAMA, **models.LONG}, models.weights(models.LLAMA, seed=9)
    )
    with pytest.raises(LineageError, match=r"was not made from .*projection \d+\.\d%"):
        extract_lora(base, unrelated, tmp_path / "a")
    record = extract_lora(base, unrelated, tmp_path / "a", rank=2, force=True, verify=False)
    assert record.extraction.lineage.verdict == "stranger"
    assert extract_lora(long, base, tmp_path / "b", rank=2, force=True, verify=False)


def test_factors_that_do_not_fit_the_dtype_are_refused(tmp_path):
    weights = models.weights(models.LLAMA)
    huge = {name: w * (1e12 if "proj" in name else 1) for name, w in weights.items()}
    extended = models.changed(huge, rank=2, size=0.5, seed=1)
    base, long = save_pair(tmp_path, models.LLAMA, huge, extended)
    with pytest.raises(InputError, match=r"too large for float16; choose a wider"):
        extract_lora(base, long, tmp_path / "a", rank=2, dtype="float16")


def test_an_adapter_that_peft_reads_differently_is_not_published(family, tmp_path, monkeypatch):
    honest = writer.peft_config

    def doubled(*arguments: Any, **named: Any) -> dict[str, Any]:
        config = honest(*arguments, **named)
        return {**config, "lora_alpha": 2 * config["r"]}

    monkeypatch.setattr(writer, "peft_config", doubled)
    with pytest.raises(CheckpointError, match=r"PEFT rebuilds '.*' 100\.\d+% away"):
        extract_lora(*family[:2], tmp_path / "a", rank=2)
    assert not (tmp_path / "a").exists()
    elsewhere = {"target_modules": ["nothing"]}
    monkeypatch.setattr(writer, "peft_config", lambda *a, **n: {**honest(*a, **n), **elsewhere})
    with pytest.raises(CheckpointError, match="PEFT does not load the adapter"):
        extract_lora(*family[:2], tmp_path / "b", rank=2)
    monkeypatch.setattr(writer, "peft_config", lambda *a, **n: {**honest(*a, **n), "r": 3})
    with pytest.raises(CheckpointError, match="says 3; the config belongs to another"):
        extract_lora(*family[:2], tmp_path / "c", rank=2, verify=False)


def test_a_config_that_does_not_fit_the_weights_is_refused_before_any_work(family, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(family[0], base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "head_dim": 1_000_000_000}))
    with pytest.raises(CheckpointError, match=r"has the shape .* and config\.json makes it"):
        extract_lora(base, family[1], tmp_path / "out")
