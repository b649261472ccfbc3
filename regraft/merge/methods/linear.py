"""The weighted mean of models, and `blend`, the weighted sum that other methods use too.

Model soups: averaging weights of multiple fine-tuned models (arXiv 2203.05482).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.merge.methods.parameter import PerInput
from regraft.merge.methods.registry import method

NEGLIGIBLE = 1e-6  # a sum of weights below this share of the sum of their magnitudes counts as 0


def vanishes(weights: Sequence[float]) -> bool:
    """Whether the weights sum to zero, but for rounding."""
    return abs(math.fsum(weights)) <= NEGLIGIBLE * math.fsum(map(abs, weights))


def blend(tensors: Sequence[Tensor], coefficients: Sequence[float] | Sequence[Tensor]) -> Tensor:
    """sum c_i x_i, computed as x_0 + ((sum c - 1) x_0 + sum c_i (x_i - x_0)).

    With coefficients that sum to 1 and similar tensors, only the small differences and the result
    are rounded, not several terms as large as the weights; equal tensors give exactly that tensor.
    Coefficients are numbers or float64 tensors that broadcast.
    """
    first = tensors[0]
    excess, *factors = _factors(coefficients, first.dtype)
    correction = first * excess
    for tensor, factor in zip(tensors[1:], factors, strict=True):
        difference = tensor - first
        if isinstance(factor, Tensor):
            correction += difference.mul_(factor)
        else:
            correction.add_(difference, alpha=factor)
    return correction.add_(first)


def _factors(
    coefficients: Sequence[float] | Sequence[Tensor], dtype: torch.dtype
) -> list[float | Tensor]:
    """sum c - 1, and all coefficients but the first."""
    tensors = [c for c in coefficients if isinstance(c, Tensor)]
    if tensors:
        return [(torch.stack(tensors).sum(0) - 1).to(dtype), *(c.to(dtype) for c in tensors[1:])]
    numbers = [c for c in coefficients if not isinstance(c, Tensor)]
    return [math.fsum([*numbers, -1.0]), *numbers[1:]]


def check_weights(weight: Sequence[float], normalize: bool) -> None:
    """Raise InputError where `normalize` would divide by weights that sum to zero."""
    if normalize and weight and vanishes(weight):
        raise InputError(
            f"the weights {', '.join(f'{w:g}' for w in weight)} sum to zero and cannot be "
            "normalized: change them or turn normalize off"
        )


@method("linear", paper="arXiv 2203.05482", base="ignored", check=check_weights, symmetric=True)
def linear(
    tensors: list[Tensor], base: None, *, weight: PerInput[float], normalize: bool = True
) -> Tensor:
    """sum w_i x_i, divided by sum w_i if `normalize`, which needs weights that do not sum to 0."""
    divisor = math.fsum(weight) if normalize else 1.0
    return blend(tensors, [w / divisor for w in weight])
