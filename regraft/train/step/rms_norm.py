"""RMSNorm of bfloat16 hidden states without float32 copies of all of them (`memory.fused_norms`).

y = w x / rms(x), "Root Mean Square Layer Normalization" (arXiv 1910.07467). transformers computes
it in float32, a dozen passes over memory in both directions, and saves a float32 copy for the
backward pass: of a long row this is the largest part of a layer's working set. Here the input and
1 / rms [rows, 1] are saved.

- On a GPU, where the weight has the input's type and no deterministic algorithms are requested,
  torch's fused kernels make one pass in each direction and round once; transformers rounds twice.
- Elsewhere a few thousand rows are computed at a time. The forward pass gives transformers' bits,
  narrowed where the weight is wider; gradients are rounded once from float32.

Wider hidden states (float32, float64) keep the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
_CHUNK = 1 << 24  # elements at a time; each has a few float32 copies
_FUSED_CHUNK = 1 << 30  # the kernels index with 32 bits

aten = torch.ops.aten


def fuse_norms(model: nn.Module) -> None:
    """Replace the forward of the RMSNorms of Llama, Mistral, Qwen2 and Qwen3 for narrow inputs. The
    result has the input's type also where the weight is wider."""
    for module in model.modules():
        if type(module).__name__ in _NORMS:
            module.forward = _forward(module, module.forward)


def _forward(norm: Any, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype not in (torch.bfloat16, torch.float16):
            return own(hidden_states)
        return _RmsNorm.apply(hidden_states, norm.weight, norm.variance_epsilon)

    return run


class _RmsNorm(torch.autograd.Function):
    """x [..., d], weight [d] -> [..., d] in x's type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        run, size = (fused, _FUSED_CHUNK) if _has_kernel(x, weight) else (plain, _CHUNK)
        parts = _slices(rows, size)
        if len(parts) == 1:
            result, scale = run(rows, weight, epsilon)
        else:
            result, scale = torch.empty_like(rows), rows.new_empty(len(rows), 1, dtype=torch.float)
            for part in parts:
                result[part], scale[part] = run(rows[part], weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return result.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        run, size = plain_backward, _CHUNK
        if _has_kernel(x, weight):
            run, size = fused_backward, _FUSED_CHUNK
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1])
        parts = _slices(rows, size)
        if len(parts) == 1:
            dx, dw = run(grads, rows, weight, scale, needs)
        else:
            dx = torch.empty_like(rows) if needs[0] else None
            dw = torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None
            for part in parts:
                dx_part, dw_part = run(grads[part], rows[part], weight, scale[part], needs)
                if dx is not None:
                    dx[part] = dx_part
                if dw is not None:
                    dw += dw_part
        return (
            dx.view(x.shape) if dx is not None and needs[0] else None,
            dw.to(weight.dtype) if dw is not None and needs[1] else None,
            None,
        )


def plain(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x [rows, d] -> the normalised rows in x's type, and 1 / rms [rows, 1] in float32."""
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (weight * wide.mul_(scale).to(x.dtype)).to(x.dtype), scale


def plain_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, needs: tuple[bool, bool]
) -> tuple[Any, Any]:
    """The gradients of x and, in float32, of the weight; None where not needed."""
    wide, normal = grad.float(), x.float().mul_(scale)
    dw = (wide * normal).sum(0) if needs[1] else None
    if not needs[0]:
        return None, dw
    wide *= weight
    wide -= normal.mul_((wide * normal).mean(-1, keepdim=True))
    return wide.mul_(scale).to(x.dtype), dw


def fused(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """`plain` by torch's kernel, for a weight of x's type."""
    result, scale = aten._fused_rms_norm(x, [x.shape[-1]], weight, epsilon)
    return result, scale


def fused_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, needs: tuple[bool, bool]
) -> tuple[Any, Any]:
    """`plain_backward` by torch's kernel; the weight's gradient has its type."""
    dx, dw = aten._fused_rms_norm_backward(
        grad.contiguous(), x, [x.shape[-1]], scale, weight, list(needs)
    )
    return dx, dw


def _has_kernel(x: Tensor, weight: Tensor) -> bool:
    same = x.is_cuda and x.dtype == weight.dtype
    return same and not torch.are_deterministic_algorithms_enabled()


def _slices(rows: Tensor, elements: int) -> list[slice]:
    """Parts of [rows, d] with about `elements` elements each."""
    step = max(1, elements // rows.shape[1])
    return [slice(start, start + step) for start in range(0, len(rows), step)]
