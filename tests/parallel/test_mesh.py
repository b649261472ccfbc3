"""How processes meet, without other processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from regraft.parallel import Mesh
from regraft.train import loop
from regraft.train.recipe.schema import Body


@pytest.fixture
def collectives(monkeypatch):
    """Device types of the tensors that all_reduce gets, in order."""
    devices = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, *_, **__: devices.append(tensor.device))
    monkeypatch.setattr(dist, "get_rank", lambda *_: 0)
    return devices


def test_numbers_are_summed_on_the_host_whatever_the_device(collectives):
    """On a GPU a host tensor goes by gloo, whose failure is an exception and no abort."""
    mesh = Mesh(shard=2, device=torch.device("meta"))
    assert mesh.sum_numbers([1.5, 2]) == [1.5, 2.0]
    assert mesh.sum_tokens(torch.tensor([[1, -100, 2]])) == 2
    assert {device.type for device in collectives} == {"cpu"}


def test_the_first_collective_of_a_step_is_on_the_host(collectives):
    body = Body(
        model="m",
        stages=[{"length": 8, "steps": 1}],
        data={"sources": [{"name": "a", "text": "a"}]},
    )

    def stop(part):
        raise KeyboardInterrupt

    mesh = SimpleNamespace(
        cut=lambda batch: {"labels": torch.zeros(1, 8).long()},
        context=1, ulysses=1, size=2, device=torch.device("meta"),
        sum_numbers=Mesh(shard=2, device=torch.device("meta")).sum_numbers,
    )  # fmt: skip
    trainer = SimpleNamespace(
        mesh=mesh, recipe=SimpleNamespace(body=body), learner=stop, recovery=None,
        throughput=SimpleNamespace(flops=lambda rows: 1.0),
    )  # fmt: skip
    row = SimpleNamespace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "collate", lambda rows: {})
        with pytest.raises(KeyboardInterrupt):
            loop.Loop._backward(trainer, [row], 0)
    assert [device.type for device in collectives] == ["cpu"]
