"""LoRA over 4-bit weights: the arithmetic, the run, its export, and its memory."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from llama_shapes import LLAMA_8B_CONFIG
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from train_recipes import LORA, read_losses, write_recipe

from regraft.errors import InputError
from regraft.parallel import Mesh
from regraft.train import loop
from regraft.train.estimate import budget, plan
from regraft.train.estimate.machine import parse_machine
from regraft.train.estimate.throughput import shape_of
from regraft.train.estimate.trace import trace_stage
from regraft.train.job import train_model
from regraft.train.recipe.schema import Body
from regraft.train.step import four_bit
from regraft.train.step.four_bit import FourBitLinear, check_four_bit
from regraft.train.step.learner import untrained_learner

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
CPU = torch.device("cpu")
FOUR_BIT = LORA.replace("watch: {{every: 3, rows: 3}}\n", "load: {{bits: 4}}\n")


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_dequantized_weight(dtype):
    """NF4's largest gap is 0.304 of a block's largest magnitude, so no weight moves by more than
    half of it and the rounding of the type."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, dtype=dtype)
    layer = FourBitLinear(linear)
    weight = layer.whole(layer.packed, dtype)
    largest = linear.weight.abs().amax(1, keepdim=True)  # a row is a block
    bound = (0.304 / 2 + torch.finfo(dtype).eps) * largest
    assert bool(((weight - linear.weight).abs() <= bound).all())
    assert layer.packed.numel() == 64 * 48 // 2
    x = torch.randn(2, 5, 64, dtype=dtype, requires_grad=True)
    above = torch.randn(2, 5, 48, dtype=dtype)
    results = []
    for output in (layer(x), F.linear(x, weight, linear.bias)):
        results.append((output.detach(), *torch.autograd.grad(output, x, above)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_bitsandbytes
@pytest.mark.usefixtures("one_thread")
def test_a_run_learns_resumes_to_the_same_bytes_and_exports_the_models_own_weights(
    trained_model, data_folder, tmp_path, monkeypatch
):
    recipe = write_recipe(tmp_path, data_folder, FOUR_BIT, trained_model)
    train_model(recipe, tmp_path / "whole", device="cpu")
    plain = write_recipe(
        tmp_path / "plain", data_folder, FOUR_BIT.replace("load: {{bits: 4}}\n", ""), trained_model
    )
    train_model(plain, tmp_path / "plain" / "out", device="cpu")
    losses, others = (
        [line[2] for line in read_losses(folder)]
        for folder in (tmp_path / "whole", tmp_path / "plain" / "out")
    )
    assert losses != others
    assert losses == pytest.approx(others, rel=0.1)

    real = loop.state.save

    def killed(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.state, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_model(recipe, tmp_path / "resumed", device="cpu")
    train_model(recipe, tmp_path / "resumed", device="cpu", resume=True)
    for name in ("adapter_model.safetensors", "regraft-differences.safetensors"):
        assert (tmp_path / "resumed" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()

    model = write_recipe(
        tmp_path / "model", data_folder, FOUR_BIT + "export: {{kind: model}}\n", trained_model
    )
    train_model(model, tmp_path / "model" / "out", device="cpu")
    base, merged = (
        load_file(p / "model.safetensors") for p in (trained_model, tmp_path / "model/out")
    )
    adapter = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    assert merged.keys() == base.keys()
    config = json.loads((tmp_path / "whole" / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    for name, weight in base.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" not in adapter:
            continue
        a, b = (adapter[f"{key}.lora_{side}.weight"].double() for side in "AB")
        torch.testing.assert_close(
            merged[name], (weight + scale * b @ a).float(), rtol=1e-5, atol=1e-6
        )


def body(**memory) -> Body:
    return Body.model_validate(
        {
            "model": "m", "method": "lora", "dtype": "bfloat16", "lora": {"rank": 16},
            "load": {"bits": 4}, "memory": {"keep_attention": False, **memory},
            "stages": [{"length": 64, "steps": 1}],
            "data": {"sources": [{"name": "a", "text": "a"}]},
        }
    )  # fmt: skip


@needs_bitsandbytes
def test_a_bitsandbytes_without_a_library_for_this_gpu_is_refused_before_loading(monkeypatch):
    """It can be imported, and fails at its first use."""

    def missing(*_):
        raise RuntimeError("CUDA binary not found.\nTry another.")

    broken = SimpleNamespace(quantize_4bit=four_bit._operators().quantize_4bit)
    broken.dequantize_4bit = missing
    monkeypatch.setattr(four_bit, "_operators", lambda: broken)
    with pytest.raises(InputError, match=r"not work on cpu .*\(.*CUDA binary not found.*\); "):
        untrained_learner(body(), LLAMA_8B_CONFIG, "m", Mesh.create(device="cpu"))


@needs_bitsandbytes
def test_the_plan_counts_four_bits_and_the_trace_agrees():
    """Two layers of Llama-3-8B at 32k tokens."""
    recipe = body(tiled_mlp=4096)
    config = {**LLAMA_8B_CONFIG, "num_hidden_layers": 2}
    traced = trace_stage(recipe, config, 32768, 1, 1)
    gpu = parse_machine("H100", None)
    switches = replace(plan.switches_of(recipe, gpu), overhead=0)
    shape = shape_of(untrained_learner(recipe, config, "m", Mesh.create(device="cpu")))
    assert shape.parameters == 2 * 128256 * 4096 + 4096 + 2 * 218_112_000 + shape.trained
    assert budget.memory(shape, switches, 32768, 1, 1)[0] == pytest.approx(
        traced.device_bytes, rel=0.05
    )


def test_what_cannot_be_loaded_in_four_bits_is_refused(tmp_path, data_folder, monkeypatch):
    with pytest.raises(InputError, match="one process only"):
        check_four_bit(CPU, sharded=True)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError, match=r"pip install 'regraft\[four-bit\]'"):
            check_four_bit(CPU, sharded=False)
    text = FOUR_BIT.replace("method: lora\nlora: {{rank: 4, alpha: 16, rslora: true, norms: true}}",
                            "method: full")  # fmt: skip
    with pytest.raises(InputError, match="4-bit weights do not learn; say method: lora"):
        train_model(write_recipe(tmp_path, data_folder, text), tmp_path / "out", device="cpu")
    text = FOUR_BIT + "dtype: float64\n"
    with pytest.raises(InputError, match="4-bit weights have no float64"):
        train_model(write_recipe(tmp_path, data_folder, text), tmp_path / "out", device="cpu")
