"""Small dense linear algebra on tall blocks of columns: orthonormal bases, norms, eigenproblems.

The building blocks of `svd` and `certificate`. Eigenproblems of a few hundred columns run on the
CPU in float64 whatever device the block is on: a GPU's solver takes several times as long.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from regraft.device import single_threaded

_LEAST_PIVOT = 3e-3  # ratio of Cholesky pivots below which Cholesky-QR loses orthogonality
_BLOCK_ELEMENTS = 2**20


def squared_frobenius(matrix: Tensor) -> float:
    """||D||_F^2 of a matrix (m, n), accumulated in float64 over row blocks that stay in cache."""
    return math.fsum(
        float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
        for block in row_blocks(matrix)
    )


def row_blocks(matrix: Tensor) -> tuple[Tensor, ...]:
    """Views of (m, n) of about a million elements each."""
    return matrix.split(max(1, _BLOCK_ELEMENTS // max(1, matrix.shape[1])))


def gaussian(rows: int, columns: int, seed: int, like: Tensor) -> Tensor:
    """(rows, columns) of independent standard normal numbers, the same on every device. Read only.

    Drawing them on the CPU takes longer than a GPU's passes over a whole matrix, so the last few
    results are cached: matrices of one width and seed share them.
    """
    result = _gaussian(rows, columns, seed, like.dtype, like.device)
    if result.is_cuda:  # or its memory is free when the cache drops it, before it was read
        result.record_stream(torch.cuda.current_stream(result.device))
    return result


@lru_cache(maxsize=8)
def _gaussian(
    rows: int, columns: int, seed: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, columns, generator=generator, dtype=torch.float32)
    numbers = numbers.to(device, dtype)
    if device.type == "cuda":  # other threads may read it on their streams
        torch.cuda.current_stream(device).synchronize()
    return numbers


def orthonormal(block: Tensor, *, strict: bool) -> Tensor:
    """Orthonormal columns with the span of `block` (m, q).

    Cholesky-QR, twice if `strict`; Householder QR where the columns are nearly dependent.
    """
    scale = torch.linalg.vector_norm(block, dim=0).clamp_min(torch.finfo(block.dtype).tiny)
    result = block / scale
    for _ in range(2 if strict else 1):
        gram = (result.T @ result).double().cpu()
        factor, failed = torch.linalg.cholesky_ex((gram + gram.T) / 2)
        pivots = factor.diagonal()
        if int(failed) or float(pivots.min()) < _LEAST_PIVOT * float(pivots.max()):
            return torch.linalg.qr(block / scale)[0]
        identity = torch.eye(factor.shape[0], dtype=factor.dtype)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        result = result @ inverse.T.to(result)
    return result


def gram(block: Tensor) -> Tensor:
    """X'X of `block` (m, q) with float64 accumulation, symmetric, on the CPU."""
    wide = block.double()
    product = (wide.T @ wide).cpu()
    return (product + product.T) / 2


def eigenvalues(symmetric: Tensor) -> Tensor:
    """Eigenvalues (q,) of a symmetric matrix, ascending."""
    with single_threaded():
        return torch.linalg.eigvalsh((symmetric + symmetric.T) / 2)


def eigenvectors(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """(q,) ascending eigenvalues and (q, q) eigenvectors as columns."""
    with single_threaded():
        return torch.linalg.eigh(symmetric)


def small_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, Vt of a small square matrix in float64 on the CPU."""
    with single_threaded():
        return torch.linalg.svd(matrix.double().cpu(), full_matrices=False)
