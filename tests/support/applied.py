"""Results that tests of apply compare a graft with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

State = dict[str, torch.Tensor]


def made_by_peft(folder: Path, base: Path, **config: Any) -> State:
    """Save a random adapter by PEFT; returns the weights that PEFT merges it to."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **config}))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save.default" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    wrapped.save_pretrained(folder)
    state = wrapped.merge_and_unload().state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def same(result: State, expected: State, tolerance: float = 1e-6) -> None:
    assert result.keys() <= expected.keys()
    for name, tensor in result.items():
        torch.testing.assert_close(tensor, expected[name], atol=tolerance, rtol=0, msg=name)


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))
