"""What apply refuses, and the sentence for each."""

from __future__ import annotations

import math
import re

import models
import pytest
import torch
from safetensors.torch import save_file

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.errors import CheckpointError, InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's own, and ours where none is tested
]


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_in_a_tensor_that_changes_is_named(value, family, adapter, tmp_path):
    state = models.load(family[2])
    state[Q][3, 3] = value
    target = models.save(tmp_path / "bad", models.LLAMA, state)
    with pytest.raises(CheckpointError, match=f"'{Q}' of .*bad holds NaN") as refused:
        apply_lora(adapter, target, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_nan_in_a_tensor_that_is_only_copied_is_named_and_nothing_stays(family, adapter, tmp_path):
    name = "model.embed_tokens.weight"
    state = models.load(family[2])
    before = state[name][3, 3].clone()
    state[name][3, 3] = math.nan
    target = models.save(tmp_path / "bad", models.LLAMA, state)
    with pytest.raises(CheckpointError, match=f"'{name}' of .*bad holds NaN"):
        apply_lora(adapter, target, tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))  # no staging that would bar the corrected run
    state[name][3, 3] = before
    models.save(target, models.LLAMA, state)
    apply_lora(adapter, target, tmp_path / "out")


def test_nan_that_no_sample_saw_is_named(tmp_path):
    config = {**models.LLAMA, "intermediate_size": 512}
    base, long, derivative = models.family(tmp_path, config=config)
    extract_lora(base, long, tmp_path / "a", rank=4, verify=False)
    state = models.load(derivative)
    name = "model.layers.1.mlp.up_proj.weight"
    from regraft.checkpoint.read.sample import sample_blocks

    at = sample_blocks(state[name].numel())[3][1]
    state[name].view(-1)[at] = math.nan
    models.save(derivative, config, state)
    with pytest.raises(CheckpointError, match=f"'{name}' of .* holds NaN"):
        apply_lora(tmp_path / "a", derivative, tmp_path / "out")


def test_a_change_that_the_dtype_cannot_hold_is_refused(family, adapter, tmp_path):
    target = models.save(tmp_path / "t", models.LLAMA, models.load(family[2]), dtype=torch.float16)
    with pytest.raises(CheckpointError, match=r"does not fit torch\.float16"):
        apply_lora(adapter, target, tmp_path / "out", scale=1e9, force=True)


@pytest.mark.parametrize(
    ("config", "state", "message"),
    [
        ({"num_hidden_layers": 1}, None, "has no tensor 'model.layers.1"),
        ({"intermediate_size": 80}, None, r"is \[.*\] and .* changes one of \[.*\]"),
        ({}, lambda s: s.update({Q: s[Q].to(torch.int8)}), "not quantised"),
    ],
)
def test_another_architecture_is_refused_by_name(config, state, message, adapter, tmp_path):
    config = {**models.LLAMA, **config}
    weights = models.weights(config)
    if state:
        state(weights)
    target = models.save(tmp_path / "t", config, {})
    save_file({k: v.contiguous() for k, v in weights.items()}, target / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as refused:
        apply_lora(adapter, target, tmp_path / "out", force=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": math.nan}, "is not a number that can scale"),
        ({"scale": math.inf}, "is not a number that can scale"),
        ({"max_shard_size": "big"}, "'big' is not a size"),
        ({"device": "nowhere"}, "--device 'nowhere' is not"),
    ],
)
def test_arguments_are_checked_before_any_work(arguments, message, family, adapter, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        apply_lora(adapter, family[2], tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_adapter_and_checkpoint_swapped_are_told_apart(family, adapter, tmp_path):
    with pytest.raises(CheckpointError, match="is a model"):
        apply_lora(family[2], adapter, tmp_path / "out")
    with pytest.raises(CheckpointError):
        apply_lora(adapter, adapter, tmp_path / "out")


def test_an_output_inside_an_input_is_refused(family, adapter, tmp_path):
    for out in (family[2], family[2] / "x", adapter, adapter / "x"):
        with pytest.raises(InputError, match="overlaps the input"):
            apply_lora(adapter, family[2], out, overwrite=True)
