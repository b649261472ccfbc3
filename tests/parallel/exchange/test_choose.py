"""The choice between ring and gather."""

from __future__ import annotations

from dataclasses import replace

import pytest

from regraft.parallel.exchange.choose import (
    GPU_CLUSTER,
    GPU_NODE,
    Machine,
    Work,
    gather_bytes,
    needed_bandwidth,
    pick,
)

LLAMA_8B = Work(length=131072, context=8, heads=32, kv_heads=8, head_dim=128)


@pytest.mark.parametrize(
    ("length", "context", "gigabytes"), [(131072, 8, 10.7), (2**20, 8, 1.335), (2**20, 512, 97.5)]
)
def test_bandwidth_rule_for_llama_8b(length: int, context: int, gigabytes: float) -> None:
    work = replace(LLAMA_8B, length=length, context=context)
    assert needed_bandwidth(work, 400e12) / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_gather_where_its_first_head_is_cheap() -> None:
    assert pick(LLAMA_8B, GPU_NODE)[0] == "gather"
    assert pick(replace(LLAMA_8B, context=1), GPU_NODE)[0] == "gather"


def test_ring_where_a_gather_would_wait_or_hold_too_much() -> None:
    alone = replace(LLAMA_8B, kv_heads=1, heads=4)  # after Ulysses over eight ranks
    exchange, reason = pick(alone, GPU_CLUSTER)
    assert exchange == "ring"
    assert "43%" in reason
    long = replace(LLAMA_8B, length=4 * 2**20)
    assert gather_bytes(replace(long, length=2**20)) == int(3.5 * 2**30)
    assert pick(long, GPU_NODE) == ("ring", "a gather would hold 14.0 GiB of keys and values")
    slow = Machine(flops=400e12, bandwidth=1e9)
    assert pick(LLAMA_8B, slow)[0] == "ring"
