"""A frozen linear layer with its LoRA, y = x W' + s (x A') B', with few passes over memory.

x [..., i], W [o, i], A [r, i], B [o, r], y [..., o]. The formula is that of "LoRA: Low-Rank
Adaptation of Large Language Models" (arXiv 2106.09685), as in PEFT. PEFT computes the second term
by itself, scales it and adds it: six passes over memory as large as y, and in the backward pass
three as large as x to add two gradients. Here the second product adds into the first in both
directions (the addmm of BLAS) and is rounded once with it; in float64 results differ from PEFT's by
rounding only. Saved are x, h = x A' [..., r] and references to the parameters; not the second term,
and the layer's recomputation ends before its last product (`save_first`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regraft.train.step.four_bit import FourBitLinear
from regraft.train.step.save_first import save_first


def fuse_lora(model: nn.Module, adapter: str = "default") -> None:
    """Give every LoRA layer of the model that has nn.Linear or 4-bit weights inside and no dropout
    the fused forward. The layers must have this one adapter, unmerged."""
    from peft.tuners.lora import Linear

    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) in (nn.Linear, FourBitLinear):
            module.forward = _Fused(module, adapter)


class _Fused:
    """The forward of one PEFT layer. Where autocast is on, products have its type."""

    def __init__(self, layer: Any, adapter: str) -> None:
        assert isinstance(layer.lora_dropout[adapter], nn.Identity)
        self.base, self.scale = layer.base_layer, float(layer.scaling[adapter])
        self.down, self.up = layer.lora_A[adapter], layer.lora_B[adapter]

    def __call__(self, x: Tensor) -> Tensor:
        kind = x.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        four_bit = isinstance(self.base, FourBitLinear)
        stored = self.base.packed if four_bit else self.base.weight
        a, b = self.down.weight, self.up.weight  # [r, i], [o, r]
        shape = torch.Size((*x.shape[:-1], self.base.out_features))
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            h = F.linear(x.to(narrow), a.to(narrow))

        def forward() -> Tensor:
            bias = self.base.bias
            with torch.autocast(kind, enabled=False):
                flat, bias = x.flatten(0, -2).to(narrow), None if bias is None else bias.to(narrow)
                result = F.linear(flat, self._weight(stored, narrow), bias)
                result.addmm_(h.flatten(0, -2), b.to(narrow).T, alpha=self.scale)
            return result.view(shape)

        return save_first(forward, self._backward, shape, narrow, x, stored, a, b, h)

    def _backward(
        self, grad: Tensor, needs: tuple[bool, ...], inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x, W (None), A, B and h (None: its part is in those of x and A)."""
        x, stored, a, b, h = inputs
        dy, narrow = grad.flatten(0, -2), grad.dtype
        dh = (dy @ b.to(narrow)).mul_(self.scale)
        dx = da = db = None
        if needs[0]:
            dx = (dy @ self._weight(stored, narrow)).addmm_(dh, a.to(narrow)).view_as(x).to(x.dtype)
        if needs[2]:
            da = (dh.T @ x.flatten(0, -2).to(narrow)).to(a.dtype)
        if needs[3]:
            db = (dy.T @ h.flatten(0, -2)).to(b.dtype).mul_(self.scale)
        return dx, None, da, db, None

    def _weight(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """W [o, i]; stored: the parameter, or the packed one of 4-bit weights."""
        if isinstance(self.base, FourBitLinear):
            return self.base.whole(stored, dtype)
        return stored.to(dtype)
