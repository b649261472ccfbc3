"""Frozen linear layers with 4-bit weights (`load: {bits: 4}`), for a LoRA on a small GPU.

NF4, "QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv 2305.14314): each block of 64 weights
has a float32 scale, its largest magnitude, and each weight one of 16 values, 4.5 bits a weight in
all. Other than there, the scales are not quantized again. bitsandbytes (0.46 or later) converts, on
CPUs and GPUs. A weight is whole only for the product that needs it, in the forward pass, the
recomputation and the backward pass.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regraft.checkpoint.config import one_line
from regraft.errors import InputError
from regraft.train.step.save_first import save_first

BLOCK = 64


class FourBitLinear(nn.Module):
    """y = x W' + bias for a frozen W [o, i]; made from a layer on the CPU or the meta device."""

    packed: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        packed, scales = _operators().quantize_4bit(weight, BLOCK, "nf4", torch.uint8)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def whole(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight [o, i] of `self.packed`, which autograd may have saved."""
        shape = (self.out_features, self.in_features)
        return _operators().dequantize_4bit(packed, self.scales, BLOCK, "nf4", shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype

        def forward() -> Tensor:
            bias = None if self.bias is None else self.bias.to(narrow)
            with torch.autocast(kind, enabled=False):
                return F.linear(x.to(narrow), self.whole(self.packed, narrow), bias)

        def backward(
            grad: Tensor, needs: tuple[bool, ...], inputs: tuple[Tensor, ...]
        ) -> tuple[Tensor | None, ...]:
            like, packed = inputs
            return ((grad @ self.whole(packed, grad.dtype)).to(like.dtype), None)

        shape = torch.Size((*x.shape[:-1], self.out_features))
        return save_first(forward, backward, shape, narrow, x, self.packed)


def quantize_layers(layers: nn.Module) -> None:
    """Replace the weights of all linear layers in decoder layers, except those of a LoRA, in place.
    The model must not be sharded."""
    for parent_name, parent in list(layers.named_modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear and ".lora_" not in f"{parent_name}.{name}":
                setattr(parent, name, FourBitLinear(module))


def quantized_parameters(model: nn.Module) -> int:
    """Number of weights in 4 bits."""
    layers = [module for module in model.modules() if isinstance(module, FourBitLinear)]
    return sum(layer.in_features * layer.out_features for layer in layers)


def check_four_bit(device: torch.device, *, sharded: bool) -> None:
    """Raise InputError where 4-bit weights cannot be used on `device`. sharded: over several
    processes."""
    if sharded:
        raise InputError(
            "load: {bits: 4} works in one process only, since packed weights are not sharded; "
            "start one process or leave load out."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "load: {bits: 4} needs bitsandbytes: pip install 'regraft[four-bit]' or leave load out."
        )
    try:  # without a library for this CUDA it can be imported, and fails at its first use
        layer = FourBitLinear(nn.Linear(BLOCK, 1, dtype=torch.bfloat16)).to(device)
        layer.whole(layer.packed, torch.bfloat16)
    except (RuntimeError, ImportError, OSError) as error:
        raise InputError(
            f"load: {{bits: 4}}: bitsandbytes {version('bitsandbytes')} does not work on {device} "
            f"with torch {torch.__version__} ({one_line(error)}); install another version of it or "
            "leave load out."
        ) from error


def _operators() -> Any:
    if not hasattr(torch.ops.bitsandbytes, "quantize_4bit"):
        importlib.import_module("bitsandbytes")
    return torch.ops.bitsandbytes
