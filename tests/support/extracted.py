"""Pairs of checkpoints that tests of extract-lora extract from, and the result merged by PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import torch

from regraft.adapters.reader import Adapter

LEAVES = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]

State = dict[str, torch.Tensor]


def everything_changed(config: dict[str, Any], rank: int | None = None) -> tuple[State, State]:
    """Weights, and weights of which every tensor differs: norms, biases, embedding and head too."""
    base = models.weights(config)
    generator = torch.Generator().manual_seed(4)
    extended = models.changed(base, rank=rank, size=0.03, seed=1, names="")
    for name, tensor in extended.items():
        if tensor.ndim == 1:
            extended[name] = tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
    return base, extended


def save_pair(folder: Path, config: dict[str, Any], base: State, extended: State, **how: Any):
    return (
        models.save(folder / "base", config, base, **how),
        models.save(folder / "extended", {**config, **models.LONG}, extended, **how),
    )


def merged_by_peft(base: Path, adapter: Path) -> State:
    """The weights of `base` after PEFT has merged `adapter`."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    state = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def changes(adapter: Path) -> State:
    """Weight name -> B A of the adapter, in float64."""
    lora = Adapter.open(adapter)
    deltas = {}
    for name in lora.modules:
        b, a = lora.factors(name)
        deltas[name] = b.double() @ a.double()
    return deltas


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The relative error in the Frobenius norm."""
    return float((result.double() - expected.double()).norm() / expected.double().norm())


def record_of(adapter: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return dict(json.loads((adapter / "regraft.json").read_text(), parse_constant=refuse))
