"""Zigzag ring: keys and values pass from rank to rank while each computes with those that it has.

"Ring Attention with Blockwise Transformers" (2310.01889), in zigzag order. A rank holds its own
keys and values and one neighbour's, whatever the length, and nothing waits for the network as long
as a block's kernel takes longer than its transfer (`choose.needed_bandwidth`). K and V are one
buffer, so one message a step, posted before the kernel and awaited after it. In the backward pass
dK and dV travel behind K and V, one step late and in float32, because each rank adds to what the
one before it sent; partial outputs are joined in float32 too. A rank whose documents do not
reach into a block still passes it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from regraft.parallel.kernels.kernel import Grads, Kernel, accumulator
from regraft.parallel.kernels.spans import Rows, attend, attend_backward, empty_result

_KV, _DKV = 0, 1  # tags: the two streams of messages between the same neighbours


@dataclass(frozen=True, eq=False)
class Ring:
    """The exchange of one call: rows_of[source]: this rank's `ring_spans` against the keys of rank
    `source`; group: the process group of the context dimension, of two ranks or more."""

    rows_of: Sequence[Rows]
    kernel: Kernel
    scale: float
    group: dist.ProcessGroup

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Exchange`."""
        n, rank = self.group.size(), self.group.rank()
        out, lse = empty_result(q)
        kv = torch.stack((k, v))
        for step in range(n):
            coming = _pass_on(kv, self.group, _KV) if step + 1 < n else None
            rows = self.rows_of[(rank - step) % n]
            attend(self.kernel, q, kv[0], kv[1], rows, self.scale, out, lse)
            if coming is not None:
                kv = coming.wait()
        return out.to(q.dtype), lse

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> Grads:
        """See `Exchange`; all three are in the accumulator's type."""
        n, rank, wide = self.group.size(), self.group.rank(), accumulator(q.dtype)
        dq = torch.zeros_like(q, dtype=wide)
        kv = torch.stack((k, v))
        behind: _Message | None = None
        for step in range(n):
            coming = _pass_on(kv, self.group, _KV) if step + 1 < n else None
            dkv = torch.zeros_like(kv, dtype=wide)
            rows = self.rows_of[(rank - step) % n]
            attend_backward(
                self.kernel, dout, q, kv[0], kv[1], out, lse, rows, self.scale, dq, dkv[0], dkv[1]
            )
            if behind is not None:
                dkv += behind.wait()
            behind = _pass_on(dkv, self.group, _DKV)
            if coming is not None:
                kv = coming.wait()
        assert behind is not None
        dk, dv = behind.wait()  # the last step brings every rank its own
        return dq, dk, dv


class _Message:
    """A tensor on its way to the next rank and another coming from the one before; keeps both
    buffers alive until `wait`."""

    def __init__(self, sent: Tensor, received: Tensor, works: list[dist.Work]) -> None:
        self._sent, self._received, self._works = sent, received, works

    def wait(self) -> Tensor:
        for work in self._works:
            work.wait()
        return self._received


def _pass_on(tensor: Tensor, group: dist.ProcessGroup, tag: int) -> _Message:
    n, rank = group.size(), group.rank()
    received = torch.empty_like(tensor)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, tensor, group=group, tag=tag, group_peer=(rank + 1) % n),
            dist.P2POp(dist.irecv, received, group=group, tag=tag, group_peer=(rank - 1) % n),
        ]
    )
    return _Message(tensor, received, works)
