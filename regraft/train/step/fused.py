"""RoPE and SwiGLU by one kernel each (`memory.fused_rope`, `memory.fused_swiglu`).

RoPE is "RoFormer" (arXiv 2104.09864), SwiGLU "GLU Variants Improve Transformer" (arXiv 2002.05202).
transformers rotates in float32, as cos and sin are, in five passes over queries and keys in each
direction, and rounds twice in SwiGLU, whose gate it also saves after its activation. Here each is
one pass (`triton_kernels`), computed in float32 and rounded once.

- Rotation is out of place and saves the tables alone; memory may be in any order of axes.
- SwiGLU saves gate and up, and its backward pass writes their gradients over them: nothing else
  reads what the two projections return. A second backward pass through the same graph is refused by
  autograd, except where the layer is recomputed for it.

Inputs other than bfloat16 and float16 on a GPU, and tables other than float32, keep the model's own
path. Models are changed one by one, transformers itself is not.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from regraft.checkpoint.config import one_line
from regraft.errors import InputError
from regraft.train.recipe.execution import Memory

_ROTATION = "apply_rotary_pos_emb"
_ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention")
_MLPS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
_SILUS = ("SiLU", "SiLUActivation")
_HALVES = (torch.bfloat16, torch.float16)

Rotation = Callable[..., tuple[Tensor, Tensor]]
"""(q [B, H, s, D], k [B, Hk, s, D], cos [1 or B, s, D], sin) -> q and k rotated."""


def check_fused(memory: Memory, device: torch.device) -> None:
    """Raise InputError where the recipe wants fused kernels and they do not work on `device`."""
    names = [name for name in ("fused_rope", "fused_swiglu") if getattr(memory, name)]
    if not names:
        return
    advice = f"remove {' and '.join(names)} from the recipe"
    if device.type != "cuda":
        raise InputError(
            f"memory: {{{names[0]}: true}} is for GPUs and this runs on {device.type}; {advice}."
        )
    try:
        kernels = _kernels()
        x = torch.ones(1, 1, 1, 16, dtype=torch.bfloat16, device=device)
        kernels.swiglu(x, x, torch.empty_like(x))  # compiled and run
    except Exception as error:  # what compilers and drivers raise has no class in common
        raise InputError(
            f"memory: {{{names[0]}: true}} needs Triton, a GPU that it knows and a C compiler "
            f"({one_line(error)}): pip install triton, or {advice}."
        ) from error


def fuse_rope(model: nn.Module) -> None:
    """Rotate queries and keys of every attention layer of a transformers model by the kernel.

    The layers' own forward functions run, with another function in place of the name
    `apply_rotary_pos_emb`. Raises InputError for architectures that may rotate other pairs.
    """
    made: dict[type, Any] = {}
    for layer in _layers(model):
        attention = layer.self_attn
        kind = type(attention)
        if kind not in made:
            made[kind] = _with_rotation(kind)
        attention.forward = types.MethodType(made[kind], attention)


def _with_rotation(kind: type) -> Any:
    forward: Any = getattr(kind, "forward", None)
    code = getattr(forward, "__code__", None)
    if kind.__name__ not in _ATTENTIONS or code is None or _ROTATION not in code.co_names:
        raise InputError(
            f"memory: {{fused_rope: true}} does not know how {kind.__name__} rotates; leave it out."
        )
    own = forward.__globals__[_ROTATION]
    names = {**forward.__globals__, _ROTATION: _rotation(own)}
    result = types.FunctionType(
        code, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    result.__kwdefaults__ = forward.__kwdefaults__
    return result


def _rotation(own: Rotation) -> Rotation:
    def run(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        narrow = _has_kernel(q) and _has_kernel(k)
        if not narrow or cos.dtype != torch.float32 or cos.shape[-1] != q.shape[-1]:
            return own(q, k, cos, sin)
        return Rotate.apply(q, cos, sin), Rotate.apply(k, cos, sin)

    return run


class Rotate(torch.autograd.Function):
    """x [B, H, s, D], cos and sin [1 or B, s, D] -> [B, H, s, D] in x's type and order of axes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, inverse=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _rotated(grad, *ctx.saved_tensors, inverse=True), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool) -> Tensor:
    x, cos, sin = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, cos, sin))
    out = torch.empty_like(x)
    if not isinstance(x, FakeTensor):
        _kernels().rotate(x, out, cos, sin, inverse=inverse)
    return out


def fuse_swiglu(model: nn.Module) -> None:
    """Compute silu(gate) up by the kernel in every MLP of a transformers model. Raises InputError
    for one of another form."""
    for layer in _layers(model):
        mlp = layer.mlp
        kinds = type(mlp).__name__, type(getattr(mlp, "act_fn", None)).__name__
        if kinds[0] not in _MLPS or kinds[1] not in _SILUS:
            raise InputError(
                f"memory: {{fused_swiglu: true}} does not know {kinds[0]} with {kinds[1]}; leave "
                "it out."
            )
        mlp.forward = _Mlp(mlp)


class _Mlp:
    def __init__(self, mlp: Any) -> None:
        self.mlp = mlp

    def __call__(self, x: Tensor) -> Tensor:
        return self.mlp.down_proj(self._product(x))

    def _product(self, x: Tensor) -> Tensor:
        gate, up = self.mlp.gate_proj(x), self.mlp.up_proj(x)
        if not _has_kernel(gate) or gate.dtype != up.dtype:
            return self.mlp.act_fn(gate) * up
        return SwiGlu.apply(gate.contiguous(), up.contiguous())


class SwiGlu(torch.autograd.Function):
    """gate and up of one shape, contiguous -> silu(gate) up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        if not isinstance(gate, FakeTensor):
            _kernels().swiglu(gate, up, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad = grad.contiguous()
        if not isinstance(gate, FakeTensor):
            _kernels().swiglu_backward(grad, gate, up)
        for tensor in (gate, up):  # autograd does not see what a kernel writes
            torch.autograd.graph.increment_version(tensor)
        return gate, up


def _layers(model: Any) -> Any:
    """The decoder layers of a transformers model."""
    return model.model.layers


def _has_kernel(x: Tensor) -> bool:
    return x.dtype in _HALVES and (x.is_cuda or isinstance(x, FakeTensor))


def _kernels() -> Any:
    return importlib.import_module("regraft.train.step.triton_kernels")
