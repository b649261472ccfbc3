"""Operations that save what their backward needs before they compute.

torch's checkpoint stops recomputing a layer as soon as everything that was saved in it is there
again. An autograd Function saves when its forward is done, so the last one of a layer is always
computed once more, for nothing. `save_first` is one operation in two Functions: `_Inputs` saves the
inputs and has the backward, `_Output` computes and saves nothing. Recomputation ends between them.
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
    """forward(), a tensor of this shape and dtype, whose gradients with respect to `inputs` are
    what `backward` gives. forward runs without a graph; backward with autocast off."""
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
        return inputs[0].new_zeros((), dtype=dtype).expand(shape)  # of the result's shape, no bytes

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
