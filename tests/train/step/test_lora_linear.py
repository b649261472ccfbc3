"""The fused LoRA layer against PEFT's."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from regraft.train.step.lora_linear import fuse_lora

INNER, OUTER, RANK, TOKENS = 64, 96, 4, 200


def lora_layer(dtype: torch.dtype, bias: bool = False, adapters: torch.dtype | None = None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INNER, OUTER, bias=bias)).to(dtype).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=6, target_modules=["0"]), model)
    model[0].cast_input_dtype_enabled = False
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape).to(adapters or dtype)
    return model


def step(model, x, autocast=False):
    """[y, gradients of x, A, B]."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    weight = torch.linspace(-1, 1, y.numel()).sin().view_as(y).bfloat16().to(y.dtype)
    inputs = [t for t in (x, *model.parameters()) if t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, inputs, weight)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("needs_x", [False, True])
def test_the_fused_layer_is_pefts(bias, needs_x):
    model = lora_layer(torch.float64, bias)
    x = torch.randn(2, TOKENS // 2, INNER, dtype=torch.float64, requires_grad=needs_x)
    expected = step(model, x)
    fuse_lora(model)
    torch.testing.assert_close(step(model, x), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_narrow_results_are_no_further_from_exact_than_pefts(autocast):
    """One rounding of h and two of y, where PEFT has three; gradients likewise."""
    model = lora_layer(torch.bfloat16, adapters=torch.float32 if autocast else None)
    for parameter in model.parameters():  # both start from the same narrow numbers
        parameter.data = parameter.data.bfloat16().to(parameter.dtype)
    x = torch.randn(1, TOKENS, INNER).bfloat16().requires_grad_()
    exact = lora_layer(torch.float64)
    exact.load_state_dict(model.state_dict())
    expected = step(exact, x.detach().double().requires_grad_())
    theirs = step(model, x, autocast)
    fuse_lora(model)
    ours = step(model, x, autocast)
    unit = torch.finfo(torch.bfloat16).eps / 2
    for got, other, want in zip(ours, theirs, expected, strict=True):
        assert got.dtype == other.dtype
        error = float((got.double() - want).norm() / want.norm())
        assert error < 3 * unit
        assert error < 1.1 * float((other.double() - want).norm() / want.norm())


class Products(TorchDispatchMode):
    """Records the shape of the first factor, (rows, inner size), of every product."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.seen.append(
                tuple(args[0 if func.overloadpacket == torch.ops.aten.mm else 1].shape)
            )
        return func(*args, **(kwargs or {}))


def test_recomputation_ends_before_the_last_layers_product():
    model = nn.Sequential(lora_layer(torch.float64), nn.Linear(OUTER, INNER).double())
    model = nn.Sequential(model[1], model[0])  # [OUTER -> INNER] plain, [INNER -> OUTER] with LoRA
    fuse_lora(model)
    x = torch.randn(TOKENS, OUTER, dtype=torch.float64, requires_grad=True)
    with Products() as products:
        checkpoint(model, x, use_reentrant=False).sum().backward()
    narrow = products.seen.count((TOKENS, INNER))
    # x A' twice, x W' once, grad W for the plain layer once: its gradient is [TOKENS, INNER] too
    assert narrow == 4
