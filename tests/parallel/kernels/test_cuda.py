"""CUDA's kernels as training calls them, by shape alone: no numbers, but no GPU either.

Everything runs on fake tensors whose device is cuda. torch's operators check the arguments and give
shapes and types; for FlashAttention-3 and the flash-attn package their Python functions stand in,
with the checks of their C++ code.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import _fa3

from regraft.parallel.exchange.function import Attention
from regraft.parallel.exchange.gather import Gather
from regraft.parallel.kernels import cuda
from regraft.parallel.kernels.cuda import Cudnn, Flash, Flash3, FlashPackage, candidates
from regraft.parallel.kernels.kernel import Kernel
from regraft.parallel.kernels.spans import attend, attend_backward, empty_result
from regraft.parallel.layout import Span

TOKENS, BATCH = 96, 2
DOCUMENTS = (0, 40, 41, 95)
SHAPES = [  # query heads, KV heads, head size: Llama-3, Qwen2-0.5B, no GQA, the largest head
    (32, 8, 128, torch.bfloat16), (14, 2, 64, torch.bfloat16), (4, 4, 80, torch.float16),
    (8, 1, 256, torch.bfloat16),
]  # fmt: skip


def documents(starts: tuple[int, ...]) -> list[Span]:
    """Each token sees those before it in its document."""
    pairs = zip(starts, (*starts[1:], TOKENS), strict=True)
    return [Span(a, b, a, b, True) for a, b in pairs]


ROWS = {
    "one document": [documents((0,))],
    "packed": [documents(DOCUMENTS)],
    "rows packed differently": [documents(DOCUMENTS), documents((0, 7))],
    "more keys than queries": [[Span(0, TOKENS, 0, 2 * TOKENS, True)]],
}


def sliced(tensor: Tensor, where: Any) -> Tensor:
    for axis, part in enumerate(where if isinstance(where, tuple) else (where,)):
        if isinstance(part, int):
            return tensor.select(axis, part)
        start, stop, _ = part.indices(tensor.shape[axis])
        tensor = tensor.narrow(axis, start, stop - start)
    return tensor


@pytest.fixture(autouse=True)
def _no_device_guards(monkeypatch):
    """In these methods torch's CPU build asks for the current CUDA device before any operator."""
    dense = torch.contiguous_format
    monkeypatch.setattr(Tensor, "contiguous", lambda t: t.clone(memory_format=dense))
    monkeypatch.setattr(Tensor, "__getitem__", sliced)
    monkeypatch.setattr(
        Tensor, "__setitem__", lambda t, where, new: sliced(t, where).zero_().add_(new)
    )


def kernel_named(name: str, monkeypatch: Any) -> Kernel:
    if name == "flash-attn":
        package = FlashPackage.__new__(FlashPackage)
        package._package = _Package
        return package
    if name == "fa3":
        operators = SimpleNamespace(
            _flash_attention_forward=_fa3._fa3_flash_attention_forward_impl_default,
            _flash_attention_backward=_fa3._fa3_flash_attention_backward_impl,
        )
        monkeypatch.setattr(cuda, "aten", operators)
        monkeypatch.setattr(_fa3, "_FA3_CUDA_FWD", fa3_forward)
        monkeypatch.setattr(_fa3, "_FA3_CUDA_BWD", fa3_backward)
        monkeypatch.setattr(_fa3, "_get_device_major", lambda device: 9)
        monkeypatch.setattr(_fa3, "torch", _TorchWithCuda())
        return Flash3.__new__(Flash3)
    return {"cudnn": Cudnn, "flash": Flash}[name]()


def projected(heads: int, tokens: int, size: int, dtype: torch.dtype) -> Tensor:
    """[B, H, S, D] as the projections and the rotation leave it: [B, S, H, D] in memory."""
    return torch.empty(BATCH, tokens, heads, size, device="cuda", dtype=dtype).transpose(1, 2)


@pytest.mark.parametrize("name", ["fa3", "cudnn", "flash", "flash-attn"])
@pytest.mark.parametrize(("heads", "kv_heads", "size", "dtype"), SHAPES)
def test_kernels_take_what_training_gives_them(name, heads, kv_heads, size, dtype, monkeypatch):
    if name == "cudnn" and size > 128:
        size = 128  # its largest, also in `choose`, which runs a block
    kernel = kernel_named(name, monkeypatch)
    assert type(kernel) in candidates()
    for label, rows in ROWS.items():
        keys = max(span.k1 for row in rows for span in row)
        with FakeTensorMode():
            q = projected(heads, TOKENS, size, dtype)
            k, v = (projected(kv_heads, keys, size, dtype) for _ in range(2))
            context = Context()
            out = Attention.forward(context, q, k, v, Gather(rows, kernel, 0.3, None))
            dout = projected(heads, TOKENS, size, dtype)
            dq, dk, dv, *_ = Attention.backward(context, dout)
        lse = context.saved_tensors[-1]
        assert (out.shape, lse.shape) == (q.shape, q.shape[:-1]), label
        assert (out.dtype, lse.dtype) == (dtype, torch.float32), label
        assert [t.shape for t in (dq, dk, dv)] == [q.shape, k.shape, v.shape], label
        assert {t.dtype for t in (dq, dk, dv)} == {dtype}, label
        assert {t.device.type for t in (out, lse, dq, dk, dv)} == {"cuda"}, label


@pytest.mark.parametrize("name", ["fa3", "cudnn", "flash", "flash-attn"])
def test_kernels_take_the_blocks_of_a_ring(name, monkeypatch):
    """A causal block of its own keys, then keys of others: all of them for half of the queries, and
    half of them for all. Results are joined in float32, gradients added in it."""
    kernel, half = kernel_named(name, monkeypatch), TOKENS // 2
    spans = [
        Span(0, TOKENS, 0, TOKENS, True), Span(half, TOKENS, 0, TOKENS, False),
        Span(0, TOKENS, 0, half, False),
    ]  # fmt: skip
    with FakeTensorMode():
        q, dout = (projected(32, TOKENS, 128, torch.bfloat16) for _ in range(2))
        k, v = (projected(8, TOKENS, 128, torch.bfloat16).contiguous() for _ in range(2))
        out, lse = empty_result(q)
        sums = [torch.zeros(t.shape, device="cuda") for t in (q, k, v)]
        for span in spans:
            attend(kernel, q, k, v, [[span]], 0.3, out, lse)
            attend_backward(kernel, dout, q, k, v, out.to(q.dtype), lse, [[span]], 0.3, *sums)
    assert (out.shape, out.dtype, lse.dtype) == (q.shape, torch.float32, torch.float32)


class Context:
    """Autograd's, for tensors that do not require grad: fake ones cannot without CUDA."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


def check_inputs(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor | None = None, cu_k: Tensor | None = None,
    longest: tuple[int, int] = (0, 0),
) -> None:  # fmt: skip
    """The checks of both packages' C++ code."""
    assert q.ndim == k.ndim == v.ndim == (4 if cu_q is None else 3)
    assert all(t.stride(-1) == 1 and t.is_cuda for t in (q, k, v))
    assert {q.dtype, k.dtype, v.dtype} in ({torch.bfloat16}, {torch.float16})
    heads, kv_heads, size = q.shape[-2], k.shape[-2], q.shape[-1]
    assert heads % kv_heads == 0
    assert size % 8 == 0
    assert size <= 256
    assert k.shape == v.shape
    assert k.shape[-1] == size
    for cumulative, limit, tensor in ((cu_q, longest[0], q), (cu_k, longest[1], k)):
        if cumulative is not None:
            assert cumulative.dtype == torch.int32
            assert cumulative.is_contiguous()
            assert cumulative.is_cuda
            assert 0 < limit <= len(tensor)


def lse_like(q: Tensor) -> Tensor:
    shape = (q.shape[0], q.shape[2], q.shape[1]) if q.ndim == 4 else (q.shape[1], q.shape[0])
    return q.new_empty(shape, dtype=torch.float32)


def check_backward(dout: Tensor, q: Tensor, out: Tensor, lse: Tensor) -> None:
    assert dout.shape == out.shape == q.shape
    assert dout.dtype == out.dtype == q.dtype
    assert lse.shape == lse_like(q).shape
    assert lse.is_contiguous()
    assert dout.stride(-1) == out.stride(-1) == 1


def fa3_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """flash_attn_3::fwd as torch calls it."""
    (cu_q, cu_k), longest = rest[4:6], rest[9:11]
    check_inputs(q, k, v, cu_q, cu_k, longest)
    assert len(rest) == 31
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, lse_like(q), out, out


def fa3_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dq: Tensor, dk: Tensor,
    dv: Tensor, cu_q: Tensor | None, cu_k: Tensor | None, used_q: None, used_k: None, *rest: Any,
) -> None:  # fmt: skip
    """flash_attn_3::bwd likewise."""
    check_inputs(q, k, v, cu_q, cu_k, rest[:2])
    check_backward(dout, q, out, lse)
    assert all(t.stride(-1) == 1 for t in (dq, dk, dv))


class _TorchWithCuda:
    """torch, as FA3's Python code sees it on a GPU; fake tensors would start CUDA themselves."""

    cuda = SimpleNamespace(is_available=lambda: True)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class _Package:
    """flash-attn 2.8's functions as far as arguments and shapes go."""

    @staticmethod
    def _flash_attn_forward(
        q: Tensor, k: Tensor, v: Tensor, dropout_p: float, softmax_scale: float, causal: bool,
        window_size_left: int, window_size_right: int, softcap: float, alibi_slopes: None,
        return_softmax: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        check_inputs(q, k, v)
        return torch.empty_like(q), lse_like(q), q

    @staticmethod
    def _flash_attn_varlen_forward(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        max_seqlen_q: int, max_seqlen_k: int, dropout_p: float, softmax_scale: float, causal: bool,
        window_size_left: int = -1, window_size_right: int = -1, softcap: float = 0.0,
        alibi_slopes: None = None, return_softmax: bool = False,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        check_inputs(q, k, v, cu_seqlens_q, cu_seqlens_k, (max_seqlen_q, max_seqlen_k))
        return torch.empty_like(q), lse_like(q), q

    @staticmethod
    def _flash_attn_backward(
        dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor,
        dq: Tensor, dk: Tensor, dv: Tensor, dropout_p: float, softmax_scale: float, causal: bool,
        window_size_left: int, window_size_right: int, softcap: float, alibi_slopes: None,
        deterministic: bool, rng_state: None = None,
    ) -> None:  # fmt: skip
        check_inputs(q, k, v)
        check_backward(dout, q, out, softmax_lse)
        assert all(t.is_contiguous() for t in (dq, dk, dv))
        assert (dq.shape, dk.shape, dv.shape) == (q.shape, k.shape, v.shape)

    @staticmethod
    def _flash_attn_varlen_backward(
        dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor,
        dq: Tensor, dk: Tensor, dv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        max_seqlen_q: int, max_seqlen_k: int, dropout_p: float, softmax_scale: float, causal: bool,
        window_size_left: int, window_size_right: int, softcap: float, alibi_slopes: None,
        deterministic: bool, rng_state: None = None, zero_tensors: bool = False,
    ) -> None:  # fmt: skip
        check_inputs(q, k, v, cu_seqlens_q, cu_seqlens_k, (max_seqlen_q, max_seqlen_k))
        check_backward(dout, q, out, softmax_lse)
        assert (dq.shape, dk.shape, dv.shape) == (q.shape, k.shape, v.shape)
