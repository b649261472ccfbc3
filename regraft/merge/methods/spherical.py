"""Interpolation along great circles: SLERP, and its variants for deltas and for many models.

All results lie in the span of the inputs: one pass over the inputs for their Gram matrix (float64)
gives the coefficients, a second one the weighted sum. Angles between related models are about 1e-3,
and the cosine of that is 1 in float32; from a float64 Gram matrix they have nine digits.

SLERP: Shoemake, Animating rotation with quaternion curves (SIGGRAPH 1985). Multi-SLERP:
goddard.blog/posts/multislerp-wow-what-a-cool-idea. Karcher mean: arXiv 2603.04972.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regraft.merge.methods.blockwise.blocks import Blocks
from regraft.merge.methods.blockwise.reduce import Gram, gram_rows
from regraft.merge.methods.linear import blend, check_weights
from regraft.merge.methods.parameter import Count, PerInput, Positive
from regraft.merge.methods.registry import method

_NEARLY_PARALLEL = 0.9995  # |cosine| above which slerp interpolates linearly, as in mergekit
_NO_NORM = 1e-8  # slerp replaces smaller norms by 1, as in mergekit
_LEAST_NORM = 1e-7  # nuslerp replaces smaller norms by this


def _gram(blocks: Blocks, *, deltas: bool) -> Tensor:
    """(N, N) inner products of the inputs, or of their differences from the base if `deltas`."""
    gram: Gram | None = None
    for tensors, base in blocks():
        vectors = [t - base for t in tensors] if deltas and base is not None else tensors
        gram = gram or Gram(len(vectors))
        gram.add(vectors)
    assert gram is not None
    return gram.matrix()


def _slerp_coefficients(blocks: Blocks, t: float) -> list[float]:
    gram = Gram(2)
    for tensors, base in blocks():
        assert base is not None
        gram.add([base, tensors[0]])
    (aa, ab), (_, bb) = gram.matrix().tolist()
    norms = [math.sqrt(square) for square in (aa, bb)]
    a, b = (norm if norm > _NO_NORM else 1.0 for norm in norms)
    cosine = min(max(ab / a / b, -1.0), 1.0)
    if abs(cosine) > _NEARLY_PARALLEL:
        return [1 - t, t]
    theta = math.acos(cosine)
    return [math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)]


@method("slerp", paper="SIGGRAPH 1985, Shoemake", inputs=(1, 1), prepare=_slerp_coefficients)
def slerp(tensors: list[Tensor], base: Tensor, *, t: float, state: list[float]) -> Tensor:
    """From the base (t = 0) to the other model (t = 1) along the arc between the two tensors, with
    their lengths interpolated as well. Nearly parallel or opposite tensors: linearly."""
    return blend([base, tensors[0]], state)


def _arc(aa: Tensor, ab: Tensor, bb: Tensor, weight: Sequence[float]) -> list[Tensor]:
    """The two coefficients of vectors with these inner products, at t = w_1 / (w_0 + w_1)."""
    sum_of_weights = math.fsum(weight)
    t = 0.5 if abs(sum_of_weights) < 1e-6 else weight[1] / sum_of_weights
    norm_a, norm_b = (square.sqrt().clamp_min(_LEAST_NORM) for square in (aa, bb))
    cosine = (ab / norm_a / norm_b).clamp(-1, 1)
    parallel = 1 - cosine.square() <= 1e-16
    theta = cosine.masked_fill(parallel, 0.0).acos()
    first, second = (((1 - t) * theta).sin() / theta.sin(), (t * theta).sin() / theta.sin())
    return [first.masked_fill(parallel, 1 - t), second.masked_fill(parallel, t)]


def _nuslerp_coefficients(
    blocks: Blocks,
    shape: tuple[int, ...],
    weight: Sequence[float],
    nuslerp_row_wise: bool,
    nuslerp_flatten: bool,
) -> list[Tensor] | None:
    if nuslerp_flatten or len(shape) < 2:
        (aa, ab), (_, bb) = _gram(blocks, deltas=True)
        return _arc(aa, ab, bb, weight)
    if not nuslerp_row_wise:
        return None
    sums: list[Tensor] = []
    for tensors, base in blocks():
        a, b = ((t if base is None else t - base).double() for t in tensors)
        sums = sums or [torch.zeros_like(a[0]) for _ in range(3)]
        for x, y in zip(a, b, strict=True):  # one by one, so that blocks do not change the order
            for accumulated, product in zip(sums, (x * x, x * y, y * y), strict=True):
                accumulated += product
    return _arc(sums[0], sums[1], sums[2], weight)


@method(
    "nuslerp",
    paper="SIGGRAPH 1985, Shoemake",
    base="optional",
    inputs=(2, 2),
    prepare=_nuslerp_coefficients,
    symmetric=True,
)
def nuslerp(
    tensors: list[Tensor],
    base: Tensor | None,
    *,
    weight: PerInput[float],
    nuslerp_row_wise: bool = False,
    nuslerp_flatten: bool = True,
    state: list[Tensor] | None,
) -> Tensor:
    """SLERP between two models, or with a base between their deltas, at w_1 / (w_0 + w_1), or at
    1/2 if the weights sum to zero. Vectors are whole tensors; without `nuslerp_flatten` they run
    along the last axis, with `nuslerp_row_wise` along the first (the name is mergekit's).
    """
    vectors = tensors if base is None else [t - base for t in tensors]
    if state is None:
        columns = vectors[0].shape[-1]
        (aa,), (ab, bb) = gram_rows([v.reshape(-1, columns) for v in vectors])
        state = [c.view(*vectors[0].shape[:-1], 1) for c in _arc(aa, ab, bb, weight)]
    result = blend(vectors, state)
    return result if base is None else base + result


def _multislerp_coefficients(
    blocks: Blocks, weight: Sequence[float], normalize_weights: bool, eps: float
) -> list[float]:
    if len(weight) == 1:
        return [1.0]
    gram = _gram(blocks, deltas=True)
    divisor = math.fsum(weight) if normalize_weights else 1.0
    weights = torch.tensor(weight, dtype=torch.float64) / divisor
    norms = gram.diagonal().sqrt()
    units = weights / (norms + eps)
    length = float((units @ gram @ units).clamp_min(0).sqrt())
    if length < eps:
        return weights.tolist()
    return (units * float(weights @ norms) / length).tolist()


def _check_multislerp(weight: Sequence[float], normalize_weights: bool) -> None:
    check_weights(weight, normalize_weights)


@method(
    "multislerp",
    paper="goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    base="optional",
    prepare=_multislerp_coefficients,
    check=_check_multislerp,
    symmetric=True,
)
def multislerp(
    tensors: list[Tensor],
    base: Tensor | None,
    *,
    weight: PerInput[float],
    normalize_weights: bool = True,
    eps: Positive = 1e-8,
    state: list[float],
) -> Tensor:
    """The weighted mean of the inputs' directions (with a base, of their deltas') times the
    weighted mean of their lengths. The published step in the tangent space at that mean is left
    out, because the tangents' weighted sum is zero. Where the directions cancel, or all inputs
    equal the base, the result is the weighted sum of the inputs; a single input is returned
    unchanged.
    """
    if base is None:
        return blend(tensors, state)
    result = torch.zeros_like(base)
    for tensor, coefficient in zip(tensors, state, strict=True):
        result += (tensor - base).mul_(coefficient)
    return result.add_(base)


def _karcher_coefficients(blocks: Blocks, max_iter: int, tol: float) -> list[float]:
    gram = _gram(blocks, deltas=False)
    norms = gram.diagonal().sqrt()
    count = norms.numel()
    if count == 1:
        return [1.0]
    valid = (norms > tol).nonzero()[:, 0]
    if not valid.numel():
        return [0.0] * count
    share = 1 / valid.numel()
    # Vectors are coordinates in the basis of the normalized inputs, whose Gram matrix is `cosines`.
    cosines = gram[valid][:, valid] / norms[valid] / norms[valid, None]
    basis = torch.eye(valid.numel(), dtype=torch.float64)

    def length(vector: Tensor) -> float:
        return float((vector @ cosines @ vector).clamp_min(0).sqrt())

    mean = basis.sum(0) * share
    mean = basis[0] if length(mean) < tol else mean / length(mean)
    for _ in range(max_iter):
        tangent = torch.zeros_like(mean)
        for unit, cosine in zip(basis, (cosines @ mean).clamp(-1, 1).tolist(), strict=True):
            theta = math.acos(cosine)
            if tol <= theta and math.sin(theta) > tol:  # opposite to the mean: no direction
                tangent += share * theta / math.sin(theta) * (unit - cosine * mean)
        step = length(tangent)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= length(mean)
    coefficients = torch.zeros(count, dtype=torch.float64)
    coefficients[valid] = float(norms.mean()) * mean / norms[valid]
    return coefficients.tolist()


@method(
    "karcher",
    paper="arXiv 2603.04972",
    base="ignored",
    prepare=_karcher_coefficients,
    symmetric=True,
)
def karcher(
    tensors: list[Tensor],
    base: None,
    *,
    max_iter: Count = 10,
    tol: Positive = 1e-5,
    state: list[float],
) -> Tensor:
    """The point on the sphere with the least sum of squared angles to the inputs' directions, by
    Riemannian gradient steps, times the mean of their lengths. Inputs shorter than `tol` count in
    that mean only."""
    return blend(tensors, state)
