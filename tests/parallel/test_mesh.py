"""How processes meet, without other processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from regraft.parallel import Mesh


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
