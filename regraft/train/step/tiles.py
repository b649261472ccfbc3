"""An MLP over a few thousand tokens at a time.

Of a whole sequence's MLP only the input x [B, s, d] and the output [B, s, d] exist, and only x is
saved (with references to the trained parameters); the tensors between them, [B, s, width of the
MLP], exist for one tile. The method is TiledMLP of "Arctic Long Sequence Training" (arXiv
2506.13996). Differences: each tile runs once in the forward pass and once, with its gradient, in
the backward pass, also where the layer around it is recomputed, because that recomputation ends
before the MLP (`save_first`); and gradients of weights are summed over the tiles in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regraft.parallel.kernels.kernel import accumulator
from regraft.train.step.save_first import save_first


def tile_mlp(mlp: nn.Module, tile: int) -> None:
    """Make an MLP compute `tile` tokens at a time. It maps [B, s, d] to [B, s, d], each token
    separately. Its forward is replaced: hooks on the module stay outside."""
    forward: Callable[[Tensor], Tensor] = mlp.forward
    mlp.forward = _Tiled(mlp, forward, tile)


class _Tiled:
    def __init__(self, mlp: nn.Module, forward: Callable[[Tensor], Tensor], tile: int) -> None:
        self.mlp, self.forward, self.tile = mlp, forward, tile

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1] <= self.tile:
            return self.forward(x)
        kind = x.device.type
        enabled = torch.is_autocast_enabled(kind)
        narrow = torch.get_autocast_dtype(kind) if enabled else x.dtype

        def forward() -> Tensor:
            result = torch.empty_like(x, dtype=narrow)
            for part, rows in zip(x.split(self.tile, 1), result.split(self.tile, 1), strict=True):
                rows.copy_(self.forward(part))
            return result

        def backward(grad: Tensor, needs: tuple[bool, ...], inputs: tuple[Tensor, ...]) -> Any:
            with torch.autocast(kind, narrow, enabled=enabled):
                return self._backward(grad, needs[0], inputs[0])

        return save_first(forward, backward, x.shape, narrow, x, *self._trained())

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.mlp.parameters() if parameter.requires_grad]

    def _backward(self, grad: Tensor, needs_x: bool, x: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x [B, s, d], None unless `needs_x`, and of each trained parameter, from
        grad [B, s, d]."""
        parameters = self._trained()
        of_x = torch.empty_like(x) if needs_x else None
        sums = [torch.zeros_like(p, dtype=accumulator(p.dtype)) for p in parameters]
        for start in range(0, x.shape[1], self.tile):
            rows = slice(start, start + self.tile)
            part = x[:, rows].detach().requires_grad_(needs_x)
            inputs = [part, *parameters] if needs_x else parameters
            with torch.enable_grad():
                result = self.forward(part)
            grads = torch.autograd.grad(result, inputs, grad[:, rows])
            if of_x is not None:
                of_x[:, rows] = grads[0]
            for total, value in zip(sums, grads[len(inputs) - len(sums) :], strict=True):
                total += value
        return of_x, *(total.to(p.dtype) for total, p in zip(sums, parameters, strict=True))
