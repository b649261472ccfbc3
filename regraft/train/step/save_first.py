"""Operations that save the inputs of their backward pass before they compute.

torch's checkpoint (`use_reentrant=False`) stops recomputing a layer when all tensors that the
layer's forward pass saved exist again. An autograd Function saves after its forward, so the last
one of a layer is always computed once more, for nothing. `save_first` is one operation in two
Functions: `_Inputs` saves `inputs`, nothing else, and has the backward pass; `_Output` computes and
saves nothing. Recomputation ends between them, by checkpoint's early stop, which is on by default
(`torch.utils.checkpoint.set_checkpoint_early_stop`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Grads = tuple[Tensor | None, ...]
Backward = Callable[[Tensor, tuple[bool, ...], tuple[Tensor, ...]], Grads]
"""(gradient of the result, which inputs need a gradient, the inputs) -> their gradients."""


def save_first(
    forward: Callable[[], Tensor],
    backward: Backward,
    shape: torch.Size,
    dtype: torch.dtype,
    *inputs: Tensor,
) -> Tensor:
    """The result of forward(), a tensor of this shape and dtype on the device of the first input.

    inputs: all tensors, of any shapes, that `backward` reads; it returns the gradient of each, of
    its shape, or None. forward runs without a graph, and again only where the layer's recomputation
    goes on after it; backward runs with autocast off.
    """
    if not torch.is_grad_enabled():
        return forward()
    handle = _Inputs.apply(backward, shape, dtype, *inputs)
    return _Output.apply(handle, forward)


class _Inputs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backward: Backward, shape: torch.Size, dtype: torch.dtype, *inputs: Tensor
    ) -> Tensor:
        ctx.backward_of = backward
        ctx.save_for_backward(*inputs)
        return inputs[0].new_zeros((), dtype=dtype).expand(shape)  # one element, expanded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        with torch.autocast(grad.device.type, enabled=False):
            grads = ctx.backward_of(grad, ctx.needs_input_grad[3:], ctx.saved_tensors)
        return None, None, None, *grads


class _Output(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, handle: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        return compute()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None
