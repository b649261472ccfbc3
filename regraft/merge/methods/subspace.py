"""Merging in the space of singular vectors, and by consensus of tasks. All are experimental: they
help on vision models; a study of language models on 16 benchmarks saw no gain (arXiv 2511.21437).

KnOTS: model merging with SVD to tie the knots (2410.19735). TSV-Merge: task singular vectors
(2412.00081). Iso-C: no task left behind (2502.04959). Consensus task arithmetic: localizing task
information, TALL masks (2405.07813).

The first three work on whole matrices, `consensus_ta` on blocks. Their parameter `weight` is not in
the papers: a factor on each delta, by default 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from regraft.lowrank.low_rank import LowRank
from regraft.lowrank.svd import truncated_svd
from regraft.merge.methods.blockwise.blocks import Block
from regraft.merge.methods.blockwise.sparsify import Sparsifier, trim
from regraft.merge.methods.parameter import Count, Fraction, PerInput, Positive
from regraft.merge.methods.registry import method
from regraft.merge.methods.task import elect_and_add

_of_matrices = partial(method, inputs=(1, None), blockwise=False, experimental=True, symmetric=True)
_ROUNDING = 1e-6  # singular values below this share of the largest are rounding in float32


@_of_matrices("knots_ties", paper="arXiv 2410.19735")
def knots_ties(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float] = (1.0,),
    density: PerInput[Fraction] = (1.0,),
    lambda_: float = 1.0,
    normalize: bool = True,
) -> Tensor:
    """TIES in the singular basis that the deltas share: with [D_1 ... D_N] = U S [V_1 ... V_N]',
    the parts S V_i' = U' D_i are trimmed and merged, and the result is multiplied by U.

    U holds the eigenvectors of sum D_i D_i'. A matrix with more rows than columns is transposed
    first, so that the Gram matrix is the smaller one. Other tensors get plain TIES.
    """
    deltas = [t - base for t in tensors]
    if base.ndim != 2:
        return base + _ties(deltas, weight, density, normalize, lambda_)
    tall = base.shape[0] > base.shape[1]
    wide = [d.T if tall else d for d in deltas]
    gram = torch.zeros(wide[0].shape[0], wide[0].shape[0], dtype=torch.float64, device=base.device)
    for delta in wide:
        gram += delta.double() @ delta.double().T
    basis = torch.linalg.eigh(gram).eigenvectors.to(base.dtype)
    parts = [basis.T @ delta for delta in wide]
    merged = basis @ _ties(parts, weight, density, normalize, lambda_)
    return base + (merged.T if tall else merged)


def _ties(
    deltas: list[Tensor],
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    scale: float,
) -> Tensor:
    zero = torch.zeros_like(deltas[0])

    def blocks(step: int = 1) -> Iterator[Block]:
        rows = slice(None, None, step) if zero.ndim > 1 else slice(None)
        yield [d[rows] if zero.ndim else d for d in deltas], zero[rows] if zero.ndim else zero

    state: Sparsifier = trim(blocks, tuple(zero.shape), density)
    sparse = [scheme.apply(d, 0) for scheme, d in zip(state.schemes, deltas, strict=True)]
    return elect_and_add(zero, sparse, weight, normalize, scale)


@_of_matrices("tsv_merge", paper="arXiv 2412.00081")
def tsv_merge(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float] = (1.0,),
    lambda_: float = 1.0,
) -> Tensor:
    """The leading 1 / N of each delta's singular triplets, with the singular vectors of all tasks
    replaced by the nearest orthonormal set, added up.

    Directions that several tasks span are shared, so equal inputs give their leading part; the
    reference code leaves this case to rounding. Directions of a low-rank delta, such as an
    adapter's, whose singular value is rounding do not count. Other tensors get the mean of the
    deltas.
    """
    deltas = [t - base for t in tensors]
    if base.ndim != 2:
        return base + _mean(deltas, weight) * lambda_
    rank = max(1, min(base.shape) // len(deltas))
    parts = [_above_rounding(truncated_svd(delta, rank), base) for delta in deltas]
    scales = [part.S.to(base) * w for part, w in zip(parts, weight, strict=True)]
    left = _orthonormalized(torch.cat([part.U for part in parts], 1))
    right = _orthonormalized(torch.cat([part.Vt.T for part in parts], 1))
    return base + (left * torch.cat(scales).to(left)) @ right.T * lambda_


def _orthonormalized(vectors: Tensor) -> Tensor:
    """V (V'V)^(-1/2) for V (n, k), with the pseudo-inverse where the columns are dependent."""
    if not vectors.shape[1]:
        return vectors
    values, basis = torch.linalg.eigh(vectors.T.double() @ vectors.double())
    inverse = values.clamp_min(0).rsqrt().masked_fill(values <= _ROUNDING * values[-1], 0.0)
    return vectors @ ((basis * inverse) @ basis.T).to(vectors)


@_of_matrices("iso_c", paper="arXiv 2502.04959")
def iso_c(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float] = (1.0,),
    lambda_: float = 1.0,
) -> Tensor:
    """The sum of the deltas with every singular value replaced by their mean. Values that are zero,
    but for rounding, stay zero and do not count, so a sum of low rank does not gain directions.
    Other tensors get the mean of the deltas."""
    deltas = [t - base for t in tensors]
    mean = _mean(deltas, weight)
    if base.ndim != 2:
        return base + mean * lambda_
    decomposed = truncated_svd(mean * len(deltas), min(base.shape), exact=True)
    decomposed = _above_rounding(decomposed, base)
    if not decomposed.rank:
        return base.clone()
    return base + (decomposed.U @ decomposed.Vt) * (float(decomposed.S.mean()) * lambda_)


def _above_rounding(part: LowRank, base: Tensor) -> LowRank:
    """Without the singular values that are rounding: of the decomposition, or of model - base,
    whose entries are rounded to the arithmetic's steps at the base's."""
    m, n = base.shape
    step = torch.finfo(base.dtype).eps * float(torch.linalg.vector_norm(base)) / math.sqrt(m * n)
    edge = step * (math.sqrt(m) + math.sqrt(n))  # of a random matrix with entries of one step
    return part.truncated(int(part.S.gt(torch.clamp(_ROUNDING * part.S[:1], min=edge)).sum()))


def _mean(deltas: Sequence[Tensor], weight: Sequence[float]) -> Tensor:
    mean = torch.zeros_like(deltas[0])
    for delta, factor in zip(deltas, weight, strict=True):
        mean += delta * factor
    return mean.div_(len(deltas))


@method(
    "consensus_ta",
    paper="arXiv 2405.07813",
    inputs=(1, None),
    experimental=True,
    symmetric=True,
)
def consensus_ta(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float] = (1.0,),
    lambda_: float = 1.0,
    tall_lambda: PerInput[Positive] = (0.4,),
    min_tasks: Count = 2,
) -> Tensor:
    """Task arithmetic on the entries for which at least `min_tasks` tasks vote (all, if there are
    fewer); task i votes where |d_i| >= tall_lambda_i |sum of the others' deltas|."""
    deltas = [(t - base) * w for t, w in zip(tensors, weight, strict=True)]
    merged = torch.zeros_like(base)
    for delta in deltas:
        merged += delta
    votes = torch.zeros_like(base)
    for delta, share in zip(deltas, tall_lambda, strict=True):
        votes += delta.abs().ge_((merged - delta).abs_().mul_(share))
    agreed = votes.ge_(min(min_tasks, len(deltas)))
    return base + merged.mul_(agreed).mul_(lambda_)
