"""RoPE and SwiGLU by kernels: how models call them. Plain code stands in for the kernels, which
need a GPU; the formulas are the same."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from train_steps import tiny_model
from transformers.models.llama import modeling_llama

from regraft.errors import InputError
from regraft.parallel import Mesh
from regraft.train.recipe.execution import Memory
from regraft.train.recipe.schema import Body
from regraft.train.step import fused
from regraft.train.step.fused import check_fused, fuse_rope, fuse_swiglu
from regraft.train.step.learner import prepare
from regraft.train.step.rotary import ContextSpec, fix_rotary

BOTH = {"fused_rope": True, "fused_swiglu": True}


class Plain:
    """The kernels' functions. calls: names, and the shape of the first tensor."""

    def __init__(self):
        self.calls = []

    def rotate(self, x, out, cos, sin, *, inverse):
        assert cos.dtype == sin.dtype == torch.float32
        assert cos.shape[-2:] == (x.shape[2], x.shape[3])
        self.calls.append(("back" if inverse else "rotate", tuple(x.shape)))
        half = x.shape[-1] // 2
        c, s = (table[:, None, :, :half] for table in (cos, -sin if inverse else sin))
        x1, x2 = x.float().split(half, -1)
        out.copy_(torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], -1))

    def swiglu(self, gate, up, out):
        self.calls.append(("swiglu", tuple(gate.shape)))
        out.copy_(torch.nn.functional.silu(gate.float()) * up.float())

    def swiglu_backward(self, grad, gate, up):
        self.calls.append(("swiglu back", tuple(gate.shape)))
        d, g, u = grad.float(), gate.float(), up.float()
        share = g.sigmoid()
        results = d * u * share * (1 + g * (1 - share)), d * g * share
        gate.data.copy_(results[0])  # unseen by autograd, as what a kernel writes
        up.data.copy_(results[1])

    def count(self, name):
        return [call[0] for call in self.calls].count(name)


@pytest.fixture
def plain(monkeypatch):
    """On a CPU too, narrow and float32 tensors go to the stand-in."""
    kernels = Plain()
    monkeypatch.setattr(fused, "_kernels", lambda: kernels)
    monkeypatch.setattr(fused, "_has_kernel", lambda x: x.dtype.itemsize <= 4)
    return kernels


def body(memory, method="lora", dtype="bfloat16"):
    return Body.model_validate(
        {"model": "m", "method": method, "dtype": dtype, "memory": memory,
         "stages": [{"length": 8, "steps": 1}],
         "data": {"sources": [{"name": "a", "text": "a"}]}}
    )  # fmt: skip


def gradients(memory, dtype, method="lora"):
    """Loss and all gradients of a step on two rows at other positions."""
    mesh, model = Mesh(), tiny_model(torch.bfloat16).to(getattr(torch, dtype))
    torch.manual_seed(1)
    learner = prepare(model, body(memory, method, dtype), mesh)
    fix_rotary(model, ContextSpec.from_config(model.config.to_dict()), 64)
    for name, parameter in learner.trained().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    ids = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(3))
    positions = torch.stack([torch.arange(24), 40 + torch.arange(24)])
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1), "position_ids": positions}
    loss = learner(mesh.cut(batch))
    loss.backward()
    grads = [p.grad.double().flatten() for p in learner.trained().values()]
    return float(loss.detach()), torch.cat(grads)


@pytest.mark.parametrize(
    ("method", "savers", "passes"),
    [
        ("lora", {}, 2),
        ("lora", {"tiled_mlp": 8, "offload": True, "keep_attention": True}, 2),
        ("full", {"checkpoint": False}, 1),
        ("full", {"tiled_mlp": 8}, 2),
    ],
)
def test_a_step_has_the_loss_and_gradients_of_transformers(plain, method, savers, passes):
    loss, theirs = gradients(savers, "float32", method)
    assert not plain.calls
    our_loss, ours = gradients({**savers, **BOTH}, "float32", method)
    # gradients pass three SwiGLUs; each multiplies four numbers in another order
    unit = torch.finfo(torch.float32).eps
    assert our_loss == pytest.approx(loss, rel=16 * unit)
    assert float((ours - theirs).norm()) < 16 * unit * float(theirs.norm())
    shapes = {call for call in plain.calls if call[0] in ("rotate", "back")}
    assert shapes == {(n, (2, h, 24, 8)) for n in ("rotate", "back") for h in (4, 2)}
    assert plain.count("rotate") == 2 * 3 * passes  # queries and keys of three layers
    assert plain.count("back") == 2 * 3
    tiles = 3 if "tiled_mlp" in savers else 1  # a tile runs in both passes, with or without
    assert plain.count("swiglu") == 3 * tiles * passes
    assert plain.count("swiglu back") == 3 * tiles


def test_narrow_gradients_are_no_farther_from_exact_ones(plain):
    _, exact = gradients({}, "float64")
    _, theirs = gradients({}, "bfloat16")
    assert not plain.calls
    _, ours = gradients(BOTH, "bfloat16")
    assert {"rotate", "back", "swiglu", "swiglu back"} == {call[0] for call in plain.calls}
    assert float((ours - exact).norm()) < 1.2 * float((theirs - exact).norm())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wide_states_keep_the_models_own_path(dtype, monkeypatch):
    monkeypatch.setattr(fused, "_kernels", lambda: pytest.fail("a kernel was called"))
    loss, theirs = gradients({}, dtype)
    our_loss, ours = gradients(BOTH, dtype)
    assert our_loss == loss
    assert torch.equal(ours, theirs)


def test_narrow_states_on_a_cpu_keep_the_models_own_path(monkeypatch):
    monkeypatch.setattr(fused, "_kernels", lambda: pytest.fail("a kernel was called"))
    assert gradients(BOTH, "bfloat16")[0] == gradients({}, "bfloat16")[0]


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_one_model_is_changed_and_no_other(plain, name):
    def make():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, head_dim=8,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        )  # fmt: skip
        return getattr(transformers, f"{name}ForCausalLM")(config)

    model, other = make(), make()
    rotation = modeling_llama.apply_rotary_pos_emb
    fuse_rope(model)
    fuse_swiglu(model)
    ids = torch.arange(12)[None]
    expected = other(ids).logits
    assert not plain.calls
    assert modeling_llama.apply_rotary_pos_emb is rotation
    assert torch.equal(model(ids).logits, expected)
    assert plain.count("rotate") == 4
    assert plain.count("swiglu") == 2


def test_swiglu_writes_gradients_over_what_it_saved_once(plain):
    gate, up = (torch.randn(3, 8).requires_grad_().mul(1) for _ in range(2))
    result = fused.SwiGlu.apply(gate, up).sum()
    grads = torch.autograd.grad(result, (gate, up), retain_graph=True)
    assert [g.data_ptr() for g in grads] == [gate.data_ptr(), up.data_ptr()]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(result, (gate, up))


def test_second_derivatives_are_refused(plain):
    x = torch.randn(1, 2, 3, 8, requires_grad=True)
    table = torch.randn(1, 3, 8)
    for result in (
        fused.Rotate.apply(x.bfloat16(), table, table), fused.SwiGlu.apply(x.mul(1), x.mul(2))
    ):  # fmt: skip
        (grad,) = torch.autograd.grad(result.float().square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


def test_rotation_takes_any_order_of_axes_and_saves_the_tables_alone(plain):
    x = torch.randn(2, 5, 3, 8).bfloat16().requires_grad_()
    tables = [torch.randn(1, 5, 8) for _ in range(2)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = fused.Rotate.apply(x.transpose(1, 2), *tables)
    assert [t.data_ptr() for t in kept] == [t.data_ptr() for t in tables]
    assert out.transpose(1, 2).is_contiguous()
    (grad,) = torch.autograd.grad(out, x, torch.ones(2, 3, 5, 8, dtype=torch.bfloat16))
    assert grad.shape == x.shape


def test_shapes_alone_take_the_path_of_the_kernels():
    with FakeTensorMode():
        x = torch.empty(1, 7, 2, 8, dtype=torch.bfloat16, requires_grad=True).transpose(1, 2)
        assert fused._has_kernel(x)
        assert not fused._has_kernel(x.float())
        out = fused.Rotate.apply(x, *torch.empty(2, 1, 7, 8))
        result = fused.SwiGlu.apply(out.contiguous(), out.contiguous())
        assert (result.shape, result.dtype) == (x.shape, x.dtype)
        result.sum().backward()


def test_other_architectures_are_refused():
    model = tiny_model()
    model.model.layers[1].mlp.act_fn = torch.nn.GELU()
    with pytest.raises(InputError, match=r"fused_swiglu.*LlamaMLP with GELU"):
        fuse_swiglu(model)

    class GlmAttention(modeling_llama.LlamaAttention):
        """It rotates neighbours, by a function of the same name."""

    model.model.layers[1].self_attn = GlmAttention(model.config, 1)
    with pytest.raises(InputError, match=r"fused_rope.*GlmAttention rotates"):
        fuse_rope(model)
    model.model.layers[1].self_attn = type("LlamaAttention", (torch.nn.Identity,), {})()
    with pytest.raises(InputError, match=r"fused_rope.*LlamaAttention rotates"):
        fuse_rope(model)


def test_without_a_gpu_or_triton_one_sentence_says_so(monkeypatch):
    check_fused(Memory(), torch.device("cpu"))
    with pytest.raises(InputError, match=r"fused_swiglu: true.*for GPUs and this runs on cpu"):
        check_fused(Memory(fused_swiglu=True), torch.device("cpu"))

    def absent():
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(fused, "_kernels", absent)
    with pytest.raises(InputError, match=r"No module named 'triton'.*pip install triton, or"):
        check_fused(Memory(**BOTH), torch.device("cuda"))
