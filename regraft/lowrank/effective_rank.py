"""Effective rank of a matrix: the number of equal singular values with the same energy spread.

It is the participation ratio of the squared singular values,

    r(D) = (sum s_i^2)^2 / sum s_i^4 = ||D||_F^4 / ||D'D||_F^2,

1 for a rank-one matrix, n for n equal values. The numerator is known from one pass; the denominator
is exact for small matrices, else estimated as in Hutch++ (Meyer, Musco, Musco, Woodruff, arXiv
2010.09649): with V the leading right singular vectors and P = I - VV',

    ||D'D||_F^2 = ||D'D V||_F^2 + E ||D'D P g||^2,  g of independent normal numbers,

for any V, so only the second term is random. Its standard deviation is at most sqrt(1 / 2kp) of the
whole for k vectors and p probes: 2.2% of r in the worst spectrum, far less in a flat one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEADING = 32  # singular vectors whose part is computed before the rest is estimated
_PROBES = 32
_EXACT_BELOW = 512  # min(m, n) up to which the Gram matrix is formed


def effective_rank(delta: Tensor, right: Tensor, squared_norm: float, *, seed: int = 0) -> float:
    """r(D) of `delta` (m, n), float32.

    right: its leading right singular vectors as rows (k, n), at least `LEADING` for the stated
    accuracy. squared_norm: ||D||_F^2, not zero.
    """
    return 1 / _fourth_moment(delta, right, squared_norm, seed)


def effective_rank_of_factors(b: Tensor, a: Tensor) -> float:
    """r(B A) exactly, (m, r) and (r, n): D'D and B'B A A' have the same eigenvalues."""
    product = (b.double().T @ b.double()) @ (a.double() @ a.double().T)
    return float(product.trace()) ** 2 / float((product * product.T).sum())


def _fourth_moment(delta: Tensor, right: Tensor, squared_norm: float, seed: int) -> float:
    """||D'D||_F^2 / ||D||_F^4, the sum of the fourth powers of the singular values of D / ||D||."""
    norm = math.sqrt(squared_norm)
    if min(delta.shape) <= _EXACT_BELOW:
        wide = delta.double() / norm
        wide = wide if delta.shape[0] <= delta.shape[1] else wide.T
        return float((wide @ wide.T).square().sum())
    generator = torch.Generator().manual_seed(seed + 1)  # `right` may come from `seed` itself
    probes = torch.randn(delta.shape[1], _PROBES, generator=generator).to(delta)
    probes -= right.T @ (right @ probes)
    # divided between the products: squares of D are beyond float32 where D is below 1e-20 or so
    images = delta.T @ ((delta @ torch.cat([right.T, probes], 1)) / norm)
    squares = (images.double() / norm).square().sum(0)
    count = right.shape[0]
    return float(squares[:count].sum() + squares[count:].mean())
