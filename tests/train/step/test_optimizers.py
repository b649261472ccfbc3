"""Optimizers of a recipe, their weight decay and their learning rates."""

from __future__ import annotations

import pytest
import torch

from regraft.train.recipe.execution import Optimizer
from regraft.train.recipe.stages import Schedule
from regraft.train.step import optimizers
from regraft.train.step.optimizers import factor, make


@pytest.mark.parametrize("on_gpu", [False, True])
def test_adamw_is_fused_on_a_gpu(on_gpu, monkeypatch):
    """foreach would need half the moments' size again while it updates."""
    used = {}
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: on_gpu))
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **options: used.update(options))
    parameters = {
        "a": torch.nn.Parameter(torch.zeros(2, 2)),
        "b": torch.nn.Parameter(torch.zeros(2)),
    }
    optimizers.make(parameters, Optimizer())
    assert bool(used["fused"]) == on_gpu


def test_rates_rise_and_fall_as_the_schedule_says():
    cosine = Schedule(kind="cosine", warmup=2, floor=0.1)
    rates = [factor(cosine, step, 10) for step in range(11)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rates[6] == pytest.approx(0.55)
    assert rates[10] == pytest.approx(0.1)
    assert factor(Schedule(kind="linear", floor=0), 5, 10) == pytest.approx(0.5)
    assert factor(Schedule(kind="constant"), 9, 10) == 1


def test_rates_hold_before_they_fall():
    schedule = Schedule(kind="linear", warmup=2, stable=0.5, floor=0.2)
    rates = [factor(schedule, step, 10) for step in range(11)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    for kind in ("cosine", "linear"):
        assert factor(Schedule(kind=kind, stable=1), 9, 10) == 1


def test_muon_without_a_matrix_of_its_own_is_adamw_alone():
    parameters = {"model.norm.weight": torch.nn.Parameter(torch.ones(2))}
    (optimizer,) = make(parameters, Optimizer(name="muon"))
    assert isinstance(optimizer, torch.optim.AdamW)


def test_only_matrices_decay():
    parameters = {
        "model.layers.0.q.weight": torch.nn.Parameter(torch.ones(2, 2)),
        "model.norm.weight": torch.nn.Parameter(torch.ones(2)),
    }
    (adamw,) = make(parameters, Optimizer(weight_decay=0.1))
    decays = {len(g["params"][0].shape): g["weight_decay"] for g in adamw.param_groups}
    assert decays == {2: 0.1, 1: 0.0}
