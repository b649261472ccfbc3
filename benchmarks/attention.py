"""Attention forward and backward: torch's own, our kernels, and gather and ring in one process.

    python benchmarks/attention.py [--lengths 2k,4k,8k] [--ranks 4] [--dtype float32]

Eight query heads on two KV heads of 128 on a CPU, Llama-3-8B's 32 on 8 on a GPU, where lengths go
to 128k, the type is bfloat16 and every row is also given as a share of what a matrix product of
8192 x 8192 x 8192 reaches on that chip. Gather and ring are emulated: all ranks' work is done one
after the other by the code that the ranks run, without a network, so their time beside the single
kernel's is what cutting costs in arithmetic and joining. Each time is the least of `--repeats`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from harness import add_quick, environment, record
from torch import Tensor

from regraft.errors import InputError
from regraft.parallel.kernels.choose import choose, names
from regraft.parallel.kernels.kernel import Kernel
from regraft.parallel.kernels.spans import attend, attend_backward, empty_result
from regraft.parallel.layout import chunks, gather_spans, ring_spans
from regraft.units import format_tokens, parse_tokens

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # q, k, v and the gradient of the output


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="8k,16k,32k,64k,128k" if cuda else "2k,4k,8k")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--repeats", type=int, default=3)
    add_quick(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.lengths, arguments.repeats = "128", 1
    device, dtype = "cuda" if cuda else "cpu", getattr(torch, arguments.dtype)
    heads, kv_heads, size = (32, 8, 128) if cuda else (8, 2, 128)
    kernels = _kernels(device, dtype, size)
    rate = _matrix_rate(device, dtype, 256 if arguments.quick else None)
    rows = []
    for length in (parse_tokens(text) for text in arguments.lengths.split(",")):
        inputs = _inputs(length, heads, kv_heads, size, device, dtype)
        contenders = _contenders(inputs, kernels, arguments.ranks)
        # Forward 2 S^2 H D (causal), backward 2.5 times that.
        work = 7.0 * length**2 * heads * size
        best = dict.fromkeys(contenders, float("inf"))
        for _ in range(arguments.repeats):  # in turn, so that other load affects all
            for name, run in contenders.items():
                best[name] = min(best[name], _seconds(run, device))
        single = best[f"kernel {kernels[0].name}"]
        rows += [
            f"| {format_tokens(length)} | {name} | {seconds:.3f} | {work / seconds / 1e12:.3g} "
            f"| {work / seconds / rate:.0%} | {seconds / single:.2f}x |"
            for name, seconds in best.items()
        ]
    table = [
        f"# Causal attention, forward and backward, {heads} heads on {kv_heads} of {size}, "
        f"{arguments.dtype}",
        "",
        environment() + (f", {torch.cuda.get_device_name()}" if cuda else ""),
        "",
        f"A matrix product reaches {rate / 1e12:.3g} Tflop/s here. Gather and ring over "
        f"{arguments.ranks} ranks, one after the other in one process.",
        "",
        "| length | | s | Tflop/s | of a matrix product | against the single kernel |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    name = "attention-cuda" if cuda else "attention"
    record(name, "\n".join(table), keep=not arguments.quick)


def _kernels(device: str, dtype: torch.dtype, size: int) -> list[Kernel]:
    """The installed kernels, the fastest first, without the reference."""
    kernels = []
    for name in names(device):
        try:
            kernels.append(choose(device, dtype, size, name))
        except InputError as error:
            print(error)
    return kernels[:-1]


def _inputs(
    length: int, heads: int, kv_heads: int, size: int, device: str, dtype: torch.dtype
) -> Inputs:
    torch.manual_seed(0)
    q, dout = (torch.randn(1, heads, length, size, device=device, dtype=dtype) for _ in range(2))
    k, v = (torch.randn(1, kv_heads, length, size, device=device, dtype=dtype) for _ in range(2))
    return q, k, v, dout


def _contenders(inputs: Inputs, kernels: list[Kernel], ranks: int) -> dict[str, Callable[[], None]]:
    runs: dict[str, Callable[[], None]] = {"torch SDPA": lambda: _sdpa(inputs)}
    for kernel in kernels:
        runs[f"kernel {kernel.name}"] = lambda kernel=kernel: _kernel(kernel, inputs)
    runs["gather"] = lambda: _gather(kernels[0], inputs, ranks)
    runs["ring"] = lambda: _ring(kernels[0], inputs, ranks)
    return runs


def _sdpa(inputs: Inputs) -> None:
    q, k, v = (t.detach().requires_grad_() for t in inputs[:3])
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    out.backward(inputs[3])


def _kernel(kernel: Kernel, inputs: Inputs) -> None:
    q, k, v, dout = inputs
    scale = q.shape[-1] ** -0.5
    out, lse = kernel.forward(q, k, v, True, scale)
    kernel.backward(dout, q, k, v, out, lse, True, scale)


def _gather(kernel: Kernel, inputs: Inputs, ranks: int) -> None:
    q, k, v, dout = inputs
    length, scale = q.shape[2], q.shape[-1] ** -0.5
    dkv = torch.zeros((2, *k.shape), dtype=torch.float32, device=k.device)
    for rank in range(ranks):
        mine, grad = _shard(q, rank, ranks), _shard(dout, rank, ranks)
        out, lse = torch.empty_like(mine), mine.new_empty(mine.shape[:-1], dtype=torch.float32)
        rows = [gather_spans(rank, ranks, length, (0,))]
        attend(kernel, mine, k, v, rows, scale, out, lse, once=True)
        dq = torch.empty_like(mine)
        attend_backward(
            kernel, grad, mine, k, v, out, lse, rows, scale, dq, dkv[0], dkv[1], once=True
        )


def _ring(kernel: Kernel, inputs: Inputs, ranks: int) -> None:
    length, scale = inputs[0].shape[2], inputs[0].shape[-1] ** -0.5
    shards = [[_shard(t, rank, ranks) for t in inputs] for rank in range(ranks)]
    dkv = [torch.zeros((2, *s[1].shape), dtype=torch.float32, device=s[1].device) for s in shards]
    for rank, (q, _, _, dout) in enumerate(shards):
        out, lse = empty_result(q)
        order = [(rank - step) % ranks for step in range(ranks)]
        rows = {s: [ring_spans(rank, s, ranks, length, (0,))] for s in order}
        for s in order:
            attend(kernel, q, shards[s][1], shards[s][2], rows[s], scale, out, lse)
        out, dq = out.to(q.dtype), torch.zeros_like(q, dtype=torch.float32)
        for s in order:
            attend_backward(
                kernel, dout, q, shards[s][1], shards[s][2], out, lse, rows[s], scale,
                dq, dkv[s][0], dkv[s][1],
            )  # fmt: skip


def _shard(whole: Tensor, rank: int, ranks: int) -> Tensor:
    parts = [whole[:, :, a:b] for a, b in chunks(rank, ranks, whole.shape[2])]
    return torch.cat(parts, 2)


def _matrix_rate(device: str, dtype: torch.dtype, size: int | None) -> float:
    """flop/s of one large matrix product."""
    n = size or (8192 if device == "cuda" else 2048)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return max(2.0 * n**3 / _seconds(lambda: torch.mm(a, b), device) for _ in range(5))


def _seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
