"""Which AdamW a device gets."""

from __future__ import annotations

import pytest
import torch

from regraft.train.recipe.execution import Optimizer
from regraft.train.step import optimizers


@pytest.mark.parametrize("on_gpu", [False, True])
def test_adamw_is_fused_on_a_gpu(on_gpu, monkeypatch):
    """foreach would need half the moments' size again while it updates."""
    given = {}
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: on_gpu))
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **options: given.update(options))
    parameters = {
        "a": torch.nn.Parameter(torch.zeros(2, 2)),
        "b": torch.nn.Parameter(torch.zeros(2)),
    }
    optimizers.make(parameters, Optimizer())
    assert bool(given["fused"]) == on_gpu
