"""Ring or gather: which exchange of keys and values hides behind the kernels.

Forward attention of one layer costs a rank 2 S^2 H D / N operations (causal) and moves
2 (N-1)/N S Hk D values to it, whichever way they travel. The network is hidden where

    bandwidth >= F (N-1)/S * Hk/H * bytes per value        bytes/s, F operations/s

(for Llama-3-8B in bfloat16: F (N-1) / (2 S)). A ring hides all of it or, below that bandwidth,
waits; a gather can never hide its first KV head, 1/Hk of all, and holds two heads of the whole
sequence. In return it rounds less and has no chain of neighbours that all wait for the slowest.
So `auto` gathers while what it cannot hide is small, and uses a ring otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EXPOSED = 0.05
"""Share of the kernels' time that a gather may spend on its first head."""

HELD = 4 * 2**30
"""Bytes of keys and values, and of their gradients, that a gather may hold."""


@dataclass(frozen=True)
class Machine:
    """Rates of one rank in attention: floating-point operations and bytes received a second."""

    flops: float
    bandwidth: float


# Assumed unless the caller gives its own. Rough, and only their quotient matters: an H100 in
# FlashAttention-2, NVLink inside a node and 200 Gbit/s across; a few CPU cores and loopback.
GPU_NODE = Machine(400e12, 150e9)
GPU_CLUSTER = Machine(400e12, 25e9)
CPU = Machine(50e9, 2e9)


@dataclass(frozen=True)
class Work:
    """The attention of one layer on one rank of a context group, after Ulysses if there is any."""

    length: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    value_bytes: int = 2
    batch: int = 1


def needed_bandwidth(work: Work, flops: float) -> float:
    """Bytes/s that each rank must receive so that no kernel waits for keys."""
    share = work.kv_heads / work.heads
    return flops * (work.context - 1) / work.length * share * work.value_bytes


def gather_bytes(work: Work) -> int:
    """Two KV heads of the whole sequence and the float32 gradients of one, twice (before and after
    they are put in rank order)."""
    values = 2 * work.batch * work.length * work.head_dim
    return values * (3 * work.value_bytes + 2 * max(work.value_bytes, 4))


def pick(work: Work, machine: Machine) -> tuple[Literal["gather", "ring"], str]:
    """The algorithm, and why as a clause for the log. The same on all ranks: no argument differs
    between them."""
    if work.context == 1:
        return "gather", "nothing is exchanged"
    held = gather_bytes(work)
    if held > HELD:
        return "ring", f"a gather would hold {held / 2**30:.1f} GiB of keys and values"
    exposed = needed_bandwidth(work, machine.flops) / machine.bandwidth / work.kv_heads
    if exposed > EXPOSED:
        return "ring", f"a gather would wait {exposed:.0%} of the kernels' time for its first head"
    return "gather", f"its first head costs {exposed:.1%} of the kernels' time"
