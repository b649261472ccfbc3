"""Collectives and groups of a mesh, without other processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

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


def test_a_process_makes_only_the_groups_that_it_is_in(monkeypatch):
    """Of 1,024. A dimension of one rank has no group."""
    created, new_group = [], dist.new_group

    def counted(ranks=None, **options):
        created.append(ranks)
        return new_group(ranks, **options | {"backend": "fake"})

    dist.init_process_group("fake", rank=77, world_size=1024, store=FakeStore())
    monkeypatch.setattr(dist, "new_group", counted)
    try:
        mesh = Mesh.create(context=8, shard="auto", device="cpu")
        assert mesh.group("ulysses") is None
        assert created == [[*range(72, 80)], None, [*range(1024)]]
        created.clear()
        mesh = Mesh.create(context=4, ulysses=2, shard=16, replicate="auto", device="cpu")
        shard, replicate = [*range(128)], [*range(77, 1024, 128)]
        assert created == [[73, 75, 77, 79], [76, 77], None, shard, replicate]
    finally:
        dist.destroy_process_group()
