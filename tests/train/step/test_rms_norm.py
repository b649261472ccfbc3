"""RMSNorm without wide copies, against transformers' and against float64."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from train_steps import tiny_model
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from regraft.parallel import Mesh
from regraft.train.recipe.schema import Body
from regraft.train.step import rms_norm
from regraft.train.step.learner import prepare
from regraft.train.step.rms_norm import fuse_norms

WIDTH, UNIT = 64, torch.finfo(torch.bfloat16).eps / 2


def norm(dtype, kind=LlamaRMSNorm):
    torch.manual_seed(0)
    module = kind(WIDTH, eps=1e-5)
    module.weight.data = (1 + 0.3 * torch.randn(WIDTH)).bfloat16().to(dtype)
    return module


def step(module, x, needs_x=True):
    """[result, gradient of x, of the weight]."""
    x = x.detach().requires_grad_(needs_x)
    y = module(x)
    above = torch.linspace(-3, 3, y.numel()).sin().view_as(y).bfloat16().to(y.dtype)
    inputs = [x, module.weight] if needs_x else [module.weight]
    return [y.detach(), *torch.autograd.grad(y, inputs, above)]


def exact(module, x):
    x = x.detach().double().requires_grad_()
    weight = module.weight.detach().double().requires_grad_()
    y = weight * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    above = torch.linspace(-3, 3, y.numel()).sin().view_as(y).bfloat16().double()
    return [y.detach(), *torch.autograd.grad(y, (x, weight), above)]


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_narrow_states_have_transformers_result_and_no_worse_gradients(
    kind, weights, chunk, monkeypatch
):
    monkeypatch.setattr(rms_norm, "_CHUNK", chunk * WIDTH)
    module = norm(weights, kind)
    x = 3 * torch.randn(2, 150, WIDTH).bfloat16()
    theirs, expected = step(module, x), exact(module, x)
    fuse_norms(module)
    ours = step(module, x)
    assert torch.equal(ours[0], theirs[0].bfloat16())
    assert [t.dtype for t in ours] == [torch.bfloat16, torch.bfloat16, weights]
    for got, other, want in zip(ours[1:], theirs[1:], expected[1:], strict=True):
        error, their_error = (float((t.double() - want).norm() / want.norm()) for t in (got, other))
        assert error < 1.1 * their_error + 1e-6
        assert error < UNIT  # one rounding
    alone = step(module, x, needs_x=False)
    assert torch.equal(alone[1], ours[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_states_keep_transformers_own_forward(dtype):
    module, x = norm(dtype), torch.randn(5, WIDTH, dtype=dtype)
    theirs = step(module, x)
    fuse_norms(module)
    assert all(torch.equal(a, b) for a, b in zip(step(module, x), theirs, strict=True))


def test_no_float32_copy_of_the_input_is_saved():
    module, x = norm(torch.bfloat16), torch.randn(7, WIDTH).bfloat16().requires_grad_()
    fuse_norms(module)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(x)
    assert [(t.shape, t.dtype) for t in kept] == [
        (x.shape, torch.bfloat16), ((WIDTH,), torch.bfloat16), ((7, 1), torch.float32),
    ]  # fmt: skip


@pytest.mark.parametrize("needs", [(True, True), (True, False)])
def test_the_kernels_of_a_gpu_take_these_calls(needs, monkeypatch):
    """By shape alone: the backward kernel has no CPU form."""
    with FakeTensorMode():
        shapes = (9, WIDTH), (WIDTH,)
        x, w = (torch.empty(shape, dtype=torch.bfloat16, device="cuda") for shape in shapes)
        assert rms_norm._has_kernel(x, w)
        assert not rms_norm._has_kernel(x, w.float())
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert not rms_norm._has_kernel(x, w)
        y, scale = rms_norm.fused(x, w, 1e-5)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        assert (scale.shape, scale.dtype) == ((9, 1), torch.float32)
        dx, dw = rms_norm.fused_backward(y, x, w, scale, needs)
        assert dx.shape == x.shape
        assert dw is None or not needs[1] or dw.shape == w.shape


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_step_with_memory_savers_has_the_same_loss_and_gradients_as_exact(method, monkeypatch):
    """Forward bits are equal, so the loss is; gradients are no farther from float64's."""
    ids = torch.randint(50, (1, 64), generator=torch.Generator().manual_seed(3))
    savers = {"offload": True, "keep_attention": True, "tiled_mlp": 16}

    def gradients(dtype, memory):
        body = Body.model_validate(
            {"model": "m", "method": method, "dtype": dtype, "memory": memory,
             "stages": [{"length": 8, "steps": 1}],
             "data": {"sources": [{"name": "a", "text": "a"}]}}
        )  # fmt: skip
        mesh, model = Mesh(), tiny_model(torch.bfloat16).to(getattr(torch, dtype))
        torch.manual_seed(1)
        learner = prepare(model, body, mesh)
        for name, parameter in learner.trained().items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        loss = learner(mesh.cut({"input_ids": ids, "labels": ids.roll(-1, 1)}))
        loss.backward()
        grads = [p.grad.double().flatten() for p in learner.trained().values()]
        return float(loss.detach()), torch.cat(grads)

    calls, real = [], rms_norm.plain
    monkeypatch.setattr(rms_norm, "plain", lambda x, *a: calls.append(len(x)) or real(x, *a))
    _, exact = gradients("float64", {"fused_norms": True})
    loss, theirs = gradients("bfloat16", savers)
    assert not calls
    our_loss, ours = gradients("bfloat16", {**savers, "fused_norms": True})
    assert our_loss == loss
    # three layers of two norms, forward and recomputed, and the last norm
    assert calls.count(64) == (3 * 2 * 2 + 1)
    assert float((ours - exact).norm()) < 1.2 * float((theirs - exact).norm())
