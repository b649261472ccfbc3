"""Attention kernels on CUDA, all through torch's own operators where it has them.

    fa3      FlashAttention-3 (2407.08608) behind the same operators, once torch has activated it;
             needs its wheel and compute capability 9.0
    cudnn    cuDNN's fused attention; documents go through flash, which has variable lengths
    flash    FlashAttention-2 (2307.08691), built into torch
    flash-attn  the same from the flash-attn package, for head sizes and fixes that torch lacks

All take bfloat16 and float16. Under `torch.use_deterministic_algorithms` flash's gradients are the
same bits twice; cuDNN's may differ. torch's layouts: flash [B, S, H, D], or [T, H, D] with
cumulative lengths; cuDNN [B, H, S, D]. lse is float32, [B, H, S] or [H, T] (cuDNN: one more axis
of 1).
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from regraft.parallel.kernels.kernel import Grads, Kernel, Lengths, StartAligned, aten

HALVES = (torch.bfloat16, torch.float16)

Layout = tuple[Tensor | None, Tensor | None, int, int]
"""Cumulative lengths of queries and keys (None: not packed), and the longest of each."""


class Flash(Kernel):
    """torch's built-in FlashAttention-2. GQA is native, causal masks are aligned at the end."""

    name = "flash"
    dtypes = HALVES

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        inputs, longest = _rows(q, k, v), (q.shape[2], k.shape[2])
        out, lse = self._run(inputs, (None, None, *longest), causal, scale)
        return out.transpose(1, 2), lse

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        causal: bool, scale: float,
    ) -> Grads:  # fmt: skip
        inputs, longest = _rows(dout, q, k, v, out), (q.shape[2], k.shape[2])
        layout = (None, None, *longest)
        grads = self._run_backward(inputs, lse.contiguous(), layout, causal, scale)
        dq, dk, dv = (g.transpose(1, 2) for g in grads)
        return dq, dk, dv

    def packed(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float
    ) -> tuple[Tensor, Tensor]:
        batch = q.shape[0]
        layout = _cumulative(lengths, batch, q.device)
        out, lse = self._run(_flat(q, k, v), layout, True, scale)
        return _unflat(out, batch), lse.unflatten(1, (batch, -1)).transpose(0, 1)

    def packed_backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        lengths: Lengths, scale: float,
    ) -> Grads:  # fmt: skip
        batch = q.shape[0]
        layout = _cumulative(lengths, batch, q.device)
        flat_lse = lse.transpose(0, 1).flatten(1).contiguous()
        grads = self._run_backward(_flat(dout, q, k, v, out), flat_lse, layout, True, scale)
        dq, dk, dv = (_unflat(g, batch) for g in grads)
        return dq, dk, dv

    def _run(
        self, inputs: list[Tensor], layout: Layout, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse, *_ = aten._flash_attention_forward(
            *inputs, *layout, 0.0, causal, False, scale=scale
        )
        return out, lse

    def _run_backward(
        self, inputs: list[Tensor], lse: Tensor, layout: Layout, causal: bool, scale: float
    ) -> Grads:
        # Without dropout the random state is never read, but the operator requires its tensors.
        device = lse.device
        state = torch.zeros(2, dtype=torch.uint64, device=device)
        dq, dk, dv = aten._flash_attention_backward(
            *inputs, lse, *layout, 0.0, causal, state, torch.empty(0, device=device), scale=scale
        )  # fmt: skip
        return dq, dk, dv


class Flash3(Flash):
    """FlashAttention-3: making one lets torch's flash operators run it, in this whole process."""

    name = "fa3"

    def __init__(self) -> None:
        from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

        if current_flash_attention_impl() != "FA3":
            activate_flash_attention_impl("FA3")

    def close(self) -> None:
        from torch.nn.attention import restore_flash_attention_impl

        restore_flash_attention_impl()


class Cudnn(StartAligned, Flash):
    """cuDNN's attention. Its backward takes the random state of its own forward; without dropout
    any value will do."""

    name = "cudnn"

    def square_or_full(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse, *_ = aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, causal, False, scale=scale
        )
        return out, lse.reshape(q.shape[:-1])

    def square_or_full_backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        causal: bool, scale: float,
    ) -> Grads:  # fmt: skip
        state = torch.zeros((), dtype=torch.int64, device=q.device)
        dq, dk, dv = aten._scaled_dot_product_cudnn_attention_backward(
            dout, q, k, v, out, lse.contiguous().unsqueeze(-1), state, state, None, None, None,
            q.shape[2], k.shape[2], 0.0, causal, scale=scale,
        )  # fmt: skip
        return dq, dk, dv


class FlashPackage(Flash):
    """The flash-attn package, 2.7 or later: the same kernels under other names."""

    name = "flash-attn"

    def __init__(self) -> None:
        from flash_attn import flash_attn_interface  # type: ignore[import-not-found]

        self._package: Any = flash_attn_interface

    def _run(
        self, inputs: list[Tensor], layout: Layout, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        settings = {
            "dropout_p": 0.0, "softmax_scale": scale, "causal": causal, "window_size_left": -1,
            "window_size_right": -1, "softcap": 0.0, "alibi_slopes": None, "return_softmax": False,
        }  # fmt: skip
        if layout[0] is None:
            out, lse, *_ = self._package._flash_attn_forward(*inputs, **settings)
        else:
            out, lse, *_ = self._package._flash_attn_varlen_forward(*inputs, *layout, **settings)
        return out, lse

    def _run_backward(
        self, inputs: list[Tensor], lse: Tensor, layout: Layout, causal: bool, scale: float
    ) -> Grads:
        settings = {
            "dropout_p": 0.0, "softmax_scale": scale, "causal": causal, "window_size_left": -1,
            "window_size_right": -1, "softcap": 0.0, "alibi_slopes": None,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }  # fmt: skip
        # The package writes into gradients that it is given, which must be contiguous.
        dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in inputs[1:4])
        if layout[0] is None:
            self._package._flash_attn_backward(*inputs, lse, dq, dk, dv, **settings)
        else:
            self._package._flash_attn_varlen_backward(*inputs, lse, dq, dk, dv, *layout, **settings)
        return dq, dk, dv


def candidates() -> list[type[Kernel]]:
    """Fastest first; cuDNN overtakes flash on Hopper."""
    modern = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    return [Flash3, Cudnn, Flash, FlashPackage] if modern else [Flash3, Flash, FlashPackage, Cudnn]


def _rows(*tensors: Tensor) -> list[Tensor]:
    """[B, H, S, D] -> [B, S, H, D], as views where D is contiguous."""
    return [
        t.transpose(1, 2) if t.stride(-1) == 1 else t.transpose(1, 2).contiguous() for t in tensors
    ]


def _flat(*tensors: Tensor) -> list[Tensor]:
    """[B, H, S, D] -> [B S, H, D]."""
    return [t.flatten(0, 1) for t in _rows(*tensors)]


def _unflat(t: Tensor, batch: int) -> Tensor:
    return t.unflatten(0, (batch, -1)).transpose(1, 2)


def _cumulative(lengths: Lengths, batch: int, device: torch.device) -> Layout:
    sides = [[pair[i] for pair in lengths] for i in (0, 1)]
    starts = (
        torch.tensor(list(accumulate(side * batch, initial=0)), dtype=torch.int32) for side in sides
    )
    cu_q, cu_k = (s.to(device, non_blocking=True) for s in starts)
    return cu_q, cu_k, max(sides[0]), max(sides[1])
