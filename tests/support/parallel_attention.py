"""Attention over a cut sequence against its definition, over two and four processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

STARTS = {  # rows of documents by their first tokens, for 64 tokens: chunks of 8 on four ranks
    "one": [[0], [0]],
    "documents": [[0, 1, 8, 30, 63], [0, 5, 16, 17, 40]],
    "shared documents": [[0, 10, 33], [0, 10, 33]],
}
TOPOLOGIES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "ring 2": {"context": 2, "algorithm": "ring"},
        "gather 2": {"context": 2, "algorithm": "gather"},
        "ulysses 2": {"ulysses": 2},
    },
    4: {
        "ring 4": {"context": 4, "algorithm": "ring"},
        "gather 4": {"context": 4, "algorithm": "gather"},
        "ulysses 4": {"ulysses": 4},
        "ring 2 x ulysses 2": {"context": 2, "ulysses": 2, "algorithm": "ring"},
        "gather 2 x ulysses 2": {"context": 2, "ulysses": 2, "algorithm": "gather"},
        "shard 2 x ring 2": {"shard": 2, "context": 2, "algorithm": "ring"},
        "replicate 2 x gather 2": {"replicate": 2, "context": 2, "algorithm": "gather"},
    },
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def attention_cases(world: int) -> Iterator[tuple[str, str, str]]:
    """(topology, documents, type) of `job_attention`: all on two ranks, documents in float64 on
    four."""
    for topology in TOPOLOGIES[world]:
        if world == 4:
            yield topology, "documents", "float64"
            continue
        yield from ((topology, which, "float64") for which in STARTS)
        yield from ((topology, "documents", dtype) for dtype in ("float32", "bfloat16"))


def documents(starts: list[list[int]], length: int) -> Tensor:
    """[B, S] document numbers."""
    rows = [[sum(s <= i for s in row) - 1 for i in range(length)] for row in starts]
    return torch.tensor(rows)


def visible(numbers: Tensor) -> Tensor:
    """[B, S] documents -> [B, 1, S, S], True where a query sees a key."""
    same = numbers[:, :, None] == numbers[:, None, :]
    return (same & torch.ones(same.shape[1:], dtype=torch.bool).tril())[:, None]


def full_attention(q: Tensor, k: Tensor, v: Tensor, numbers: Tensor, scale: float) -> Tensor:
    """The definition."""
    ratio = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(ratio, 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~visible(numbers), -torch.inf)
    return scores.softmax(-1) @ v


def local(mesh: Any, whole: Tensor, dim: int) -> Tensor:
    """This rank's tokens of a tensor whose axis `dim` is the sequence."""
    from regraft.parallel.layout import pieces

    length = whole.shape[dim]
    ranges = pieces(mesh.context_rank, mesh.context, mesh.ulysses_rank, mesh.ulysses, length)
    return torch.cat([whole.narrow(dim, a, b - a) for a, b in ranges], dim)


def meshes() -> dict[str, Any]:
    """The mesh of every topology of this number of processes. Collective."""
    from regraft.parallel import Mesh

    sizes = TOPOLOGIES[int(os.environ["WORLD_SIZE"])]
    return {name: Mesh.create(**degrees) for name, degrees in sizes.items()}


def job_attention(rank: int) -> dict[str, dict[str, float]]:
    """Largest error of out, dq, dk, dv against the definition, by topology, documents and type."""
    world, mesh_of = int(os.environ["WORLD_SIZE"]), meshes()
    errors = {
        ", ".join(case): _attention_errors(mesh_of[case[0]], STARTS[case[1]], DTYPES[case[2]])
        for case in attention_cases(world)
    }
    ring = mesh_of[f"ring {world}"]
    errors["wrong order"] = _attention_errors(ring, STARTS["one"], torch.float64, wrong=True)
    return errors


def _attention_errors(
    mesh: Any, starts: list[list[int]], dtype: torch.dtype, wrong: bool = False
) -> dict[str, float]:
    from regraft.parallel.kept_attention import KeptAttention

    length, scale = 64, 0.3
    generator = torch.Generator().manual_seed(mesh.data_rank)
    shapes = ((2, 8, length, 16), (2, 4, length, 16), (2, 4, length, 16), (2, 8, length, 16))
    q, k, v, dout = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    numbers = documents(starts, length)
    for t in (q, k, v):
        t.requires_grad_()
    out = full_attention(q, k, v, numbers, scale)
    truth = [out, *torch.autograd.grad(out, (q, k, v), dout)]
    part = mesh.cut({"input_ids": torch.zeros(2, length).long(), "documents": numbers})
    mine = [local(mesh, t.detach(), 2).to(dtype) for t in (q, k, v, dout)]
    if wrong:  # contiguous pieces where zigzag is meant
        size = length // mesh.context
        mine = [t.detach()[:, :, mesh.context_rank * size :][:, :, :size] for t in (q, k, v, dout)]
    lq, lk, lv = (t.requires_grad_() for t in mine[:3])
    got = part["context_parallel"].attend(lq, lk, lv, scale)
    results = [got, *torch.autograd.grad(got, (lq, lk, lv), mine[3])]
    assert all(t.dtype == dtype for t in results)
    kept = replace(part["context_parallel"], kept=KeptAttention())  # a layer that is recomputed
    first, again = (kept.attend(lq, lk, lv, scale) for _ in range(2))
    for a, b in zip(
        [again, *torch.autograd.grad(again, (lq, lk, lv), mine[3])], results, strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(first, got)
    return {
        label: float((a.detach().double() - local(mesh, b.detach(), 2)).abs().max())
        for label, a, b in zip(("out", "dq", "dk", "dv"), results, truth, strict=True)
    }
