"""Figures that descriptions and comparisons share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Factors = tuple[Tensor, Tensor]  # B (m, r), A (r, n)


def squared_product(first: Factors, second: Factors) -> float:
    """<B A, B2 A2> = tr(B'B2 A2 A') in float64, without forming a dense product."""
    (b, a), (b2, a2) = first, second
    left, right = b.double().T @ b2.double(), a.double() @ a2.double().T
    return float((left * right).sum())


def mean(values: Sequence[float]) -> float:
    """The mean of one or more values."""
    return sum(values) / len(values)


def leaf_of(tensor: str) -> str:
    """'q_proj' for 'model.layers.3.self_attn.q_proj.weight'."""
    return tensor.removesuffix(".weight").rpartition(".")[2]
