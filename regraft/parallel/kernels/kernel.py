"""Attention that also returns its log-sum-exp, and its backward from it: one class per kernel.

Blocks of one attention can be computed apart and joined exactly if each returns
lse = log(sum(exp(scores))): "Online normalizer calculation for softmax" (1805.02867),
FlashAttention-2 (2307.08691). The backward of a block needs only the FINAL output and lse.

    q [B, H, Q, D]   k, v [B, Hk, K, D]   out [B, H, Q, D]   lse [B, H, Q]   H a multiple of Hk

A causal block is aligned at its end (the last query sees the last key; Q <= K). `packed` runs
several causal blocks that lie one after the other in q and in k: documents, as one kernel call
where the kernel can.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Lengths = Sequence[tuple[int, int]]
"""(queries, keys) of each packed block."""

Grads = tuple[Tensor, Tensor, Tensor]

aten = torch.ops.aten


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of `dtype` are summed: float32, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def merge(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> None:
    """Join a block into (out, lse), in place and without overflow. lse is -inf where nothing was
    joined yet."""
    weight = torch.sigmoid(block_lse - lse).unsqueeze(-1)
    out.mul_(1 - weight).addcmul_(block_out, weight)  # types mix: no wide copy of the block
    torch.logaddexp(lse, block_lse, out=lse)


class Kernel:
    """One way to compute attention. Subclasses give `forward` and `backward` of one block."""

    name: str
    dtypes: tuple[torch.dtype, ...]

    def close(self) -> None:
        """Undo what making it changed in this process, if it is not going to be used."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """(out, lse). out may be in q's type or in its accumulator's; lse is in the latter."""
        raise NotImplementedError

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        causal: bool, scale: float,
    ) -> Grads:  # fmt: skip
        """(dq, dk, dv) given the final out and lse of these queries over all their blocks."""
        raise NotImplementedError

    def packed(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float
    ) -> tuple[Tensor, Tensor]:
        """`forward` of causal blocks that follow one another in q and k."""
        sides = (_split(t, lengths, i) for t, i in ((q, 0), (k, 1), (v, 1)))
        blocks = [self.forward(a, b, c, True, scale) for a, b, c in zip(*sides, strict=True)]
        outs, lses = zip(*blocks, strict=True)
        return torch.cat(outs, 2), torch.cat(lses, 2)

    def packed_backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        lengths: Lengths, scale: float,
    ) -> Grads:  # fmt: skip
        """`backward` of the same."""
        sides = ((dout, 0), (q, 0), (k, 1), (v, 1), (out, 0), (lse, 0))
        blocks = zip(*(_split(t, lengths, i) for t, i in sides), strict=True)
        parts = [self.backward(a, b, c, d, e, f, True, scale) for a, b, c, d, e, f in blocks]
        dq, dk, dv = (torch.cat(p, 2) for p in zip(*parts, strict=True))
        return dq, dk, dv


def _split(t: Tensor, lengths: Lengths, side: int) -> tuple[Tensor, ...]:
    return t.split([pair[side] for pair in lengths], 2)


class Reference(Kernel):
    """Plain matrix products in any float type on any device, a thousand queries at a time."""

    name = "reference"
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    rows = 1024

    def _scores(
        self, q: Tensor, k: Tensor, start: int, total: int, causal: bool, scale: float
    ) -> Tensor:
        """[B, Hk, H/Hk, rows, K] in the accumulator's type."""
        scores = (q @ k.unsqueeze(2).transpose(-1, -2)) * scale
        if causal:
            keys = k.shape[2]
            visible = torch.arange(start, start + q.shape[-2], device=q.device) + keys - total
            hidden = torch.arange(keys, device=q.device) > visible[:, None]
            scores.masked_fill_(hidden, -torch.inf)
        return scores

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        wide = accumulator(q.dtype)
        total, groups = q.shape[2], (k.shape[1], q.shape[1] // k.shape[1])
        k, v = k.to(wide), v.to(wide)
        outs, lses = [], []
        for start in range(0, total, self.rows):
            rows = q[:, :, start : start + self.rows].to(wide).unflatten(1, groups)
            scores = self._scores(rows, k, start, total, causal, scale)
            lse = scores.logsumexp(-1)
            outs.append((torch.exp(scores - lse[..., None]) @ v.unsqueeze(2)).flatten(1, 2))
            lses.append(lse.flatten(1, 2))
        return torch.cat(outs, 2), torch.cat(lses, 2)

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        causal: bool, scale: float,
    ) -> Grads:  # fmt: skip
        wide = accumulator(q.dtype)
        total, groups = q.shape[2], (k.shape[1], q.shape[1] // k.shape[1])
        k, v = k.to(wide), v.to(wide)
        dq, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
        for start in range(0, total, self.rows):
            part = slice(start, start + self.rows)
            rows, do, o = (t[:, :, part].to(wide).unflatten(1, groups) for t in (q, dout, out))
            scores = self._scores(rows, k, start, total, causal, scale)
            p = torch.exp(scores - lse[:, :, part].unflatten(1, groups)[..., None])
            dv += (p.transpose(-1, -2) @ do).sum(2)
            ds = p * (do @ v.unsqueeze(2).transpose(-1, -2) - (do * o).sum(-1, keepdim=True))
            dq.append(((ds @ k.unsqueeze(2)) * scale).flatten(1, 2))
            dk += (ds.transpose(-1, -2) @ rows).sum(2) * scale
        return torch.cat(dq, 2), dk, dv


class StartAligned(Kernel):
    """For kernels whose causal mask is aligned at the start: a causal block with more keys than
    queries is the keys before the queries' own, unmasked, and then a square."""

    def square_or_full(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def square_or_full_backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        causal: bool, scale: float,
    ) -> Grads:  # fmt: skip
        raise NotImplementedError

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        if not causal or k.shape[2] == q.shape[2]:
            return self.square_or_full(q, k, v, causal, scale)
        (past_k, k), (past_v, v) = _past_and_own(q, k), _past_and_own(q, v)
        out, lse = self.square_or_full(q, k, v, True, scale)
        out, lse = out.to(accumulator(q.dtype)), lse.contiguous()
        merge(out, lse, *self.square_or_full(q, past_k, past_v, False, scale))
        return out, lse

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        causal: bool, scale: float,
    ) -> Grads:  # fmt: skip
        if not causal or k.shape[2] == q.shape[2]:
            return self.square_or_full_backward(dout, q, k, v, out, lse, causal, scale)
        (past_k, k), (past_v, v) = _past_and_own(q, k), _past_and_own(q, v)
        own = self.square_or_full_backward(dout, q, k, v, out, lse, True, scale)
        past = self.square_or_full_backward(dout, q, past_k, past_v, out, lse, False, scale)
        dq = own[0].to(accumulator(q.dtype)) + past[0]
        return dq, torch.cat((past[1], own[1]), 2), torch.cat((past[2], own[2]), 2)


def _past_and_own(q: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The keys before the queries' own, and those."""
    past, own = keys.split([keys.shape[2] - q.shape[2], q.shape[2]], 2)
    return past, own


class CpuFlash(StartAligned):
    """torch's flash attention for CPUs. GQA is native: dk and dv come back with Hk heads."""

    name = "torch-cpu"
    dtypes = (torch.float64, torch.float32, torch.bfloat16)

    def square_or_full(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, scale=scale
        )
        return out, lse

    def square_or_full_backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        causal: bool, scale: float,
    ) -> Grads:  # fmt: skip
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(t.contiguous() for t in (dout, q, k, v, out, lse)), 0.0, causal, scale=scale
        )
        return dq, dk, dv
