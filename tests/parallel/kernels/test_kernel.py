"""Kernels against the definition and each other."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.parallel.kernels.choose import choose, forget, names, refusal
from regraft.parallel.kernels.kernel import CpuFlash, Kernel, Reference, merge
from regraft.parallel.kernels.spans import attend, attend_backward, empty_result
from regraft.parallel.layout import Span

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PACKED = [(3, 3), (20, 41), (1, 6)]


def inputs(queries: int = 24, keys: int = 50) -> list[Tensor]:
    """q, k, v, dout in float64, two query heads to each KV head."""
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 4, queries, 16), (2, 2, keys, 16), (2, 2, keys, 16), (2, 4, queries, 16))
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]


def definition(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """(out, lse) by softmax, through autograd."""
    k, v = (t.repeat_interleave(2, 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2) * 0.3).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def seen_by(how: str) -> Tensor:
    seen = torch.zeros(24, 50, dtype=torch.bool)
    blocks = {"full": [], "causal": [(24, 50)], "packed": PACKED}[how]
    if how == "full":
        return ~seen
    q0 = k0 = 0
    for q, k in blocks:
        seen[q0 : q0 + q, k0 : k0 + k] = torch.ones(q, k, dtype=torch.bool).tril(k - q)
        q0, k0 = q0 + q, k0 + k
    return seen


@pytest.mark.parametrize("kernel", [Reference(), CpuFlash()], ids=lambda k: k.name)
@pytest.mark.parametrize("how", ["full", "causal", "packed"])
def test_kernel_is_the_definition(kernel: Kernel, how: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(Reference, "rows", 7)  # several slices of queries
    q, k, v, dout = inputs()
    for t in (q, k, v):
        t.requires_grad_()
    out, lse = definition(q, k, v, seen_by(how))
    truth = [out, lse, *torch.autograd.grad(out, (q, k, v), dout)]
    with torch.no_grad():
        if how == "packed":
            got = kernel.packed(q, k, v, PACKED, 0.3)
            grads = kernel.packed_backward(dout, q, k, v, *got, PACKED, 0.3)
        else:
            got = kernel.forward(q, k, v, how == "causal", 0.3)
            grads = kernel.backward(dout, q, k, v, *got, how == "causal", 0.3)
    for a, b in zip((*got, *grads), truth, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", names(DEVICE))
def test_kernels_that_are_here_agree(name: str) -> None:
    dtype = torch.bfloat16
    try:
        kernel = choose(DEVICE, dtype, 64, name)
    except InputError as error:
        pytest.skip(str(error))
    assert refusal(kernel, torch.device(DEVICE), dtype, 64) is None


def test_blocks_joined_in_any_order_are_the_whole() -> None:
    q, k, v, dout = inputs(8, 12)
    spans = [Span(0, 8, 4, 12, True), Span(0, 8, 0, 3, False), Span(0, 8, 3, 4, False)]
    truth, truth_lse = Reference().forward(q, k, v, True, 0.3)
    grads = Reference().backward(dout, q, k, v, truth, truth_lse, True, 0.3)
    for order in (spans, spans[::-1]):
        out, lse = empty_result(q)
        attend(CpuFlash(), q, k, v, [order], 0.3, out, lse)
        assert torch.allclose(out, truth, rtol=0, atol=1e-14)
        assert torch.allclose(lse, truth_lse, rtol=0, atol=1e-14)
        sums = [torch.zeros_like(t) for t in (q, k, v)]
        attend_backward(CpuFlash(), dout, q, k, v, out, lse, [order], 0.3, *sums)
        for a, b in zip(sums, grads, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-14)


def test_merge_does_not_overflow() -> None:
    out, lse = torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1), -torch.inf)
    for value, weight in ((1.0, -5000.0), (2.0, 5000.0), (3.0, 5000.0)):
        merge(out, lse, torch.full_like(out, value), torch.full_like(lse, weight))
    assert out.flatten().tolist() == [2.5, 2.5]
    assert float(lse) == pytest.approx(5000.6931, abs=1e-3)


class _OffByOne(CpuFlash):
    """A causal mask aligned at the start, the commonest way to be wrong."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Any:
        return self.square_or_full(q, k, v, causal, scale)


def test_a_wrong_kernel_is_refused() -> None:
    reason = refusal(_OffByOne(), torch.device("cpu"), torch.float32, 64)
    assert reason is not None
    assert "disagrees" in reason
    assert refusal(CpuFlash(), torch.device("cpu"), torch.float32, 64) is None


def test_unknown_kernel_is_one_sentence() -> None:
    with pytest.raises(InputError, match="no attention kernel 'magic' for cpu; choose auto or one"):
        choose("cpu", torch.float32, 64, "magic")
    with pytest.raises(InputError, match=r"torch-cpu does not take torch\.float16"):
        choose("cpu", torch.float16, 64, "torch-cpu")


def test_auto_warns_where_only_plain_products_are_left(monkeypatch: Any) -> None:
    """torch has no kernel for some head sizes; plain products are many times slower."""
    monkeypatch.setattr(CpuFlash, "dtypes", ())
    forget()
    try:
        with pytest.warns(UserWarning, match=r"plain products.*torch-cpu does not take"):
            assert choose("cpu", torch.float32, 20).name == "reference"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert choose("cpu", torch.float32, 20, "reference").name == "reference"
    finally:
        forget()
