"""Figures that descriptions and comparisons share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]  # B (m, r), A (r, n)


def squared_product(first: Factors, second: Factors) -> float:
    """Return <B A, B2 A2> = tr(B'B2 A2 A') in float64, without forming a dense product."""
    (b, a), (b2, a2) = first, second
    left, right = b.double().T @ b2.double(), a.double() @ a2.double().T
    return float((left * right).sum())


def mean_and_range(key: str, values: Iterable[float]) -> dict[str, float]:
    """Return {key: mean, key_min: least, key_max: greatest} of one or more values."""
    numbers = list(values)
    return {
        key: sum(numbers) / len(numbers), f"{key}_min": min(numbers), f"{key}_max": max(numbers)
    }  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    """Return 'bfloat16' for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
