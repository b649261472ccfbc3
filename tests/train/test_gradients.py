"""The gradients of one step, without a model and without other processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from regraft.parallel import Mesh
from regraft.train import gradients
from regraft.train.recipe.schema import Body


def test_the_first_collective_of_a_step_is_on_the_host(monkeypatch):
    """On a GPU a host tensor goes by gloo: a lost process is an exception here, not an abort."""
    devices = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, *_, **__: devices.append(tensor.device))
    monkeypatch.setattr(dist, "get_rank", lambda *_: 0)
    monkeypatch.setattr(gradients, "collate", lambda rows: {})
    body = Body(
        model="m",
        stages=[{"length": 8, "steps": 1}],
        data={"sources": [{"name": "a", "text": "a"}]},
    )
    mesh = SimpleNamespace(
        cut=lambda batch: {"labels": torch.zeros(1, 8).long()},
        context=1, ulysses=1, size=2, device=torch.device("meta"),
        sum_numbers=Mesh(shard=2, device=torch.device("meta")).sum_numbers,
    )  # fmt: skip

    def learner(part):
        raise KeyboardInterrupt

    throughput = SimpleNamespace(flops=lambda rows: 1.0)
    with pytest.raises(KeyboardInterrupt):
        gradients.backward(learner, [SimpleNamespace()], body, mesh, throughput)
    assert [device.type for device in devices] == ["cpu"]
