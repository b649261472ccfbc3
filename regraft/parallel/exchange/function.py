"""Attention over the ranks of a sequence as one differentiable function of any exchange."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from regraft.parallel.kept_attention import KeptAttention
from regraft.parallel.kernels.kernel import Grads


class Exchange(Protocol):
    """A way to bring queries and keys together; q, out, dout [B, H, s, D], k, v [B, Hk, s, D] and
    lse [B, H, s] are of this rank's tokens. Both methods are collective over the ranks."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(out in q's type, lse)."""
        ...

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> Grads:
        """(dq, dk, dv), in any type; out and lse are those of `forward`."""
        ...


class Attention(torch.autograd.Function):
    """Causal attention of a zigzag shard: q [B, H, s, D], k, v [B, Hk, s, D] -> [B, H, s, D].

    `kept` saves the result for the layer's recomputation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        exchange: Exchange,
        kept: KeptAttention | None = None,
    ) -> Tensor:
        compute = partial(exchange.forward, q, k, v)
        out, lse = compute() if kept is None else kept(compute)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.exchange = exchange
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (dout,) = grads
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = ctx.exchange.backward(dout, q, k, v, out, lse)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None
