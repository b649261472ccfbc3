"""Attention kernels: output and gradients against float64, equal bits, rates, very long rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from qualification.report import Report
from qualification.scope import Scope
from regraft.device import deterministic_algorithms, set_cublas_workspace
from regraft.errors import InputError
from regraft.parallel.kernels.choose import choose, forward_and_backward, largest_errors, names
from regraft.parallel.kernels.kernel import Kernel, Lengths, Reference


def _bound(dtype: torch.dtype) -> float:
    """Largest error of a kernel as a share of the largest value: eight units in the last place of
    bfloat16 or float16, to which probabilities and their gradients are rounded before they are
    summed; forty of float32, in which sums of hundreds of terms are made."""
    return (8 if dtype.itemsize == 2 else 40) * torch.finfo(dtype).eps


def check_kernels(scope: Scope, report: Report) -> None:
    """Every installed kernel: causal, with more keys than queries, not causal, and packed."""
    set_cublas_workspace()
    long = scope.pick(1536, 1024, 96)
    cases: list[tuple[int, int, bool | Lengths]] = [
        (long, long, True),
        (long // 2 - 12, 2 * long, True),
        (long // 2, long, False),
        (long, long, [(long // 3, long // 3), (36, 36), (long - long // 3 - 36,) * 2]),
    ]
    halves = [torch.bfloat16, torch.float16] if scope.device.type == "cuda" else [torch.float32]
    kernels = list(_available(scope, report, halves[0]))
    report.figure("chosen", kernel=choose(scope.device.type, halves[0], 128).name)
    for kernel in kernels:
        for head in scope.pick((128, 64), (128,), (16,)):
            for dtype in halves:
                for case in cases:
                    _against_float64(kernel, scope, report, head, dtype, *case)
        for length in scope.pick((32768, 131072), (32768,), (128,)):
            _rate(kernel, scope, report, length)
            scope.clear()
        kernel.close()


def _available(scope: Scope, report: Report, dtype: torch.dtype) -> Iterator[Kernel]:
    for name in names(scope.device.type):
        if name == "reference":
            continue
        try:
            yield choose(scope.device.type, dtype, 128, name)
        except InputError as error:
            report.figure("not here", kernel=name, why=str(error))


def _against_float64(
    kernel: Kernel, scope: Scope, report: Report, head: int, dtype: torch.dtype,
    queries: int, keys: int, mask: bool | Lengths,
) -> None:  # fmt: skip
    shapes = ((8, queries), (2, keys), (2, keys), (8, queries))  # q, k, v, dout
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, heads, tokens, head, generator=generator).to(scope.device, dtype)
        for heads, tokens in shapes
    ]
    shape = mask if isinstance(mask, bool) else "packed"
    values = {"head": head, "dtype": str(dtype)[6:], "queries": queries, "keys": keys,
              "causal": str(shape)}  # fmt: skip
    try:
        result = forward_and_backward(kernel, inputs, mask)
        exact = forward_and_backward(Reference(), [tensor.double() for tensor in inputs], mask)
        again = forward_and_backward(kernel, inputs, mask)
        with deterministic_algorithms():
            fixed = [forward_and_backward(kernel, inputs, mask) for _ in range(2)]
    except RuntimeError as error:
        report.check(kernel.name, False, **values, error=str(error)[:300])
        return
    errors = largest_errors(result, exact)
    bound = _bound(dtype)
    same = [torch.equal(value, again[name]) for name, value in result.items()]
    report.check(
        kernel.name, max(errors.values()) < bound and all(same[:2]), **values, **errors,
        bound=bound, same_bits=all(same),
        deterministic=all(torch.equal(value, fixed[1][name]) for name, value in fixed[0].items()),
    )  # fmt: skip


def _layer(scope: Scope, length: int) -> list[Tensor]:
    """q, k, v, dout of a layer of the model, in the memory layout of transformers."""
    sizes = scope.model(1)
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    head = sizes["hidden_size"] // heads
    make = partial(torch.randn, device=scope.device, dtype=scope.dtype)
    return [make(1, length, n, head).transpose(1, 2) for n in (heads, kv_heads, kv_heads, heads)]


def _rate(kernel: Kernel, scope: Scope, report: Report, length: int) -> None:
    q, k, v, dout = _layer(scope, length)
    scale = q.shape[-1] ** -0.5
    out, lse = kernel.forward(q, k, v, True, scale)
    out = out.to(q.dtype)
    forward = scope.best(lambda: kernel.forward(q, k, v, True, scale), 2)
    backward = scope.best(lambda: kernel.backward(dout, q, k, v, out, lse, True, scale), 2)
    flops = 2.0 * length**2 * q.shape[1] * q.shape[3]
    report.figure(
        kernel.name, length=length, forward_s=forward, forward_TFLOPs=flops / forward / 1e12,
        backward_s=backward, backward_TFLOPs=2.5 * flops / backward / 1e12,
    )  # fmt: skip


def check_long_rows(scope: Scope, report: Report) -> None:
    """The chosen kernel where q has 2^31 values, against single rows of out, dq, dk and dv computed
    in float64."""
    length = scope.pick(524288, 65536, 192)
    q, k, v, dout = _layer(scope, length)
    kernel = choose(scope.device.type, q.dtype, q.shape[-1])
    scale = q.shape[-1] ** -0.5
    forward, (out, lse) = scope.timed(lambda: kernel.forward(q, k, v, True, scale))
    out = out.to(q.dtype)
    backward, grads = scope.timed(lambda: kernel.backward(dout, q, k, v, out, lse, True, scale))
    rows = [1, length // 3, length // 2 + 1, length - 1]
    heads = [0, q.shape[1] - 1]
    errors = _sampled_errors([q, k, v, dout], out, lse, grads, rows, heads, scale)
    bound = _bound(q.dtype)
    report.check(
        kernel.name, max(errors.values()) < bound, length=length, values=q.numel(),
        forward_s=forward, backward_s=backward, **errors, bound=bound,
    )  # fmt: skip


def _sampled_errors(
    inputs: list[Tensor], out: Tensor, lse: Tensor, grads: tuple[Tensor, ...], rows: list[int],
    heads: list[int], scale: float,
) -> dict[str, float]:  # fmt: skip
    """Largest ||row - exact row|| / ||exact row|| of each result over some rows of some heads; for
    dq, where the terms of dS cancel in short rows, relative to the norm of the terms if larger.

    P = exp(scale q k' - lse); dq = scale dS k, dk = scale dS' q, dv = P' dout, where
    dS = P (dout v' - sum(dout out)). A row of dk and dv sums over the queries from its own on, of
    all heads that share it, with the kernel's out and lse, which are checked themselves.
    """
    q, k, v, dout = (tensor[0] for tensor in inputs)
    out, lse = out[0], lse[0]
    dq, dk, dv = (grad[0] for grad in grads)
    ratio = q.shape[0] // k.shape[0]
    worst = dict.fromkeys(("out", "lse", "dq", "dk", "dv"), 0.0)

    def note(name: str, value: Tensor, exact: Tensor, size: Tensor | None = None) -> None:
        error = float((value.double() - exact).norm() / (exact if size is None else size).norm())
        worst[name] = max(worst[name], error if error == error else float("inf"))

    for head in heads:
        keys, values = k[head // ratio].double(), v[head // ratio].double()
        for row in rows:
            scores = keys[: row + 1] @ q[head, row].double() * scale
            p = scores.softmax(0)
            exact = p @ values[: row + 1]
            note("out", out[head, row], exact)
            total = scores.logsumexp(0)
            note("lse", lse[head, row], total, total.abs().clamp_min(1))
            delta = (dout[head, row].double() * exact).sum()
            products = values[: row + 1] @ dout[head, row].double()
            exact = (p * (products - delta)) @ keys[: row + 1] * scale
            terms = (p * (products.abs() + delta.abs())).square() @ keys[: row + 1].square()
            note("dq", dq[head, row], exact, torch.maximum(terms.sqrt() * scale, exact.abs()))
    for kv_head in {head // ratio for head in heads}:
        for row in rows:
            exact_k = exact_v = 0.0
            for head in range(kv_head * ratio, (kv_head + 1) * ratio):
                queries, above = q[head, row:].double(), dout[head, row:].double()
                p = (queries @ k[kv_head, row].double() * scale - lse[head, row:].double()).exp()
                delta = (above * out[head, row:].double()).sum(-1)
                slope = p * (above @ v[kv_head, row].double() - delta)
                exact_k, exact_v = exact_k + slope @ queries * scale, exact_v + p @ above
            note("dk", dk[kv_head, row], exact_k)
            note("dv", dv[kv_head, row], exact_v)
    return worst
