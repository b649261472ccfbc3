"""Pairs of checkpoints that tests of extract-lora extract from, and the result merged by PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file

from regraft.adapters.extract import extract
from regraft.adapters.extract.factorize import Factorizer
from regraft.adapters.folder import WEIGHTS
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


def planned_and_written(
    monkeypatch: pytest.MonkeyPatch, base: Path, extended: Path, out: Path, **how: Any
) -> tuple[dict[str, int], dict[str, int]]:
    """The bytes that an extraction checks the disk for and those of its tensors, by file."""
    planned: dict[str, int] = {}
    written: dict[str, int] = {}
    run = Factorizer.run

    def run_and_measure(self: Factorizer) -> None:
        run(self)
        for name in planned.keys() - {WEIGHTS}:
            written[name] = sum(tensor.nbytes for tensor in load_file(name).values())

    monkeypatch.setattr(Factorizer, "run", run_and_measure)
    monkeypatch.setattr(extract, "need_space", lambda _, sizes, at_most: planned.update(sizes))
    extract.extract_lora(base, extended, out, verify=False, **how)
    written[WEIGHTS] = sum(tensor.nbytes for tensor in load_file(out / WEIGHTS).values())
    return planned, written
