"""An MLP in tiles: each runs twice in a step, and the gradients are those of the whole."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

from regraft.train.step.tiles import tile_mlp

TOKENS, TILE, TILES = 50, 16, 4


class Layer(nn.Module):
    """A norm and an MLP, as in a decoder layer."""

    def __init__(self, dtype: torch.dtype, lora: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(32)
        self.mlp = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=48))
        self.to(dtype)
        if lora:
            self.requires_grad_(False)
            names = ["gate_proj", "up_proj", "down_proj"]
            inject_adapter_in_model(LoraConfig(r=4, target_modules=names), self)
            for name, parameter in self.named_parameters():
                if "lora_" in name:
                    nn.init.normal_(parameter, std=0.3)
                    parameter.data = parameter.data.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


def step(layer, x, tile, recompute, autocast=False):
    """(output, gradients of x and of what is trained, tokens of each call of the MLP)."""
    calls, forward = [], layer.mlp.forward

    def counted(part):
        calls.append(part.shape[1])
        return forward(part)

    layer.mlp.forward = counted
    if tile:
        tile_mlp(layer.mlp, tile)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    inputs = [t for t in (x, *layer.parameters()) if t.requires_grad]
    grads = torch.autograd.grad(out, inputs, weight)
    layer.mlp.forward = forward
    return out.detach(), grads, calls


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("needs_x", [False, True])
def test_tiles_have_the_gradients_of_the_whole_and_run_twice(lora, recompute, needs_x):
    torch.manual_seed(0)
    layer = Layer(torch.float64, lora)
    x = torch.randn(2, TOKENS, 32, dtype=torch.float64, requires_grad=needs_x)
    out, grads, _ = step(layer, x, 0, recompute)
    ours, our_grads, calls = step(layer, x, TILE, recompute)
    # a product over fewer rows, and a sum over tiles, may add in another order
    torch.testing.assert_close(ours, out, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(our_grads, grads, rtol=1e-12, atol=1e-12)
    assert len(calls) == 2 * TILES
    assert sum(calls) == 2 * TOKENS


@pytest.mark.parametrize("lora", [False, True])
def test_tiles_are_recomputed_under_the_autocast_of_the_forward_pass(lora):
    torch.manual_seed(1)
    layer = Layer(torch.float32, lora)
    x = torch.randn(1, TOKENS, 32).requires_grad_()
    out, grads, _ = step(layer, x, 0, True, autocast=True)
    ours, our_grads, _ = step(layer, x, TILE, True, autocast=True)
    eps = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(ours, out, rtol=4 * eps, atol=4 * eps)
    for got, want in zip(our_grads, grads, strict=True):
        assert got.dtype == want.dtype
        assert float((got - want).norm()) <= 2 * eps * float(want.norm())


def test_narrow_gradients_of_weights_are_summed_over_tiles_in_float32():
    torch.manual_seed(2)
    layer, x = Layer(torch.bfloat16, False), torch.randn(1, 4096, 32).bfloat16()
    _, grads, _ = step(layer, x, 0, False)
    _, ours, _ = step(layer, x, 8, False)
    eps = torch.finfo(torch.bfloat16).eps
    for got, want in zip(ours, grads, strict=True):
        assert float((got.float() - want.float()).norm()) <= 2 * eps * float(want.float().norm())


def test_a_pass_without_gradients_is_tiled_too():
    layer, x = Layer(torch.float64, False), torch.randn(1, TOKENS, 32, dtype=torch.float64)
    want = layer(x)
    tile_mlp(layer.mlp, TILE)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), want.detach(), rtol=1e-13, atol=1e-13)
