"""Truncated SVD of one matrix, with a certificate of its error against the best one.

Small matrices, and those that need most of their singular values, go to LAPACK; the others to
`subspace`, and to LAPACK if that reaches no certificate. `certificate` has the mathematics.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from regraft.lowrank.blocks import small_svd, squared_frobenius
from regraft.lowrank.certificate import ErrorBounds
from regraft.lowrank.low_rank import LowRank, squared_residual
from regraft.lowrank.subspace import SubspaceIteration

_EXACT_BELOW = 256  # min(m, n) up to which LAPACK is faster
_FLOAT64_BELOW = 2048  # min(m, n) up to which LAPACK works in float64
# Mean squares beyond which a copy scaled by a power of two is decomposed: bfloat16 instructions
# treat numbers below 1e-38 as zero, and float32 ends at 3e38.
_LEAST_SQUARE, _LARGEST_SQUARE = 1e-40, 1e40


def truncated_svd(
    delta: Tensor,
    rank: int,
    *,
    seed: int = 0,
    tolerance: float = 1e-3,
    exact: bool = False,
    half: Tensor | None = None,
    squared_norm: float | None = None,
    start: Tensor | None = None,
    certify: bool = True,
) -> LowRank:
    """The `rank` leading singular triplets of `delta` (m, n) float32 or float64, any device.

    The certificate of the result is at most 1 + tolerance, unless `certify` is False (then it is
    infinite) or the error is at the level of rounding (then it is larger).
    exact: use LAPACK (QR first, so tall matrices cost no more than square ones). half: the same
    matrix in bfloat16, if the caller has it; squared_norm: its ||.||_F^2 in float64; start: a basis
    (n, k) to begin with, leading directions first. The result is deterministic for a seed, a thread
    count and a library version.

    Raises ValueError for a tensor that is not a matrix, or not finite.
    """
    if delta.ndim != 2:
        raise ValueError(f"truncated_svd takes a matrix, not shape {tuple(delta.shape)}")
    m, n = delta.shape
    rank = max(0, min(rank, m, n))
    total = squared_frobenius(delta) if squared_norm is None else squared_norm
    if not math.isfinite(total):
        raise ValueError(
            "truncated_svd takes finite numbers; the matrix holds NaN or infinity, or its squares "
            "overflow float64. Look for the tensor it comes from and replace it."
        )
    if rank == 0 or total == 0.0:
        return _zero(delta, total)
    if not _LEAST_SQUARE < total / (m * n) < _LARGEST_SQUARE:
        power = 2.0 ** -round(math.log2(total) / 2)
        result = truncated_svd(
            delta * power, rank, seed=seed, tolerance=tolerance, exact=exact, start=start,
            squared_norm=total * power**2, certify=certify,
        )  # fmt: skip
        bounds = result.bounds.scaled(power**-2)
        return replace(result, S=bounds.values, bounds=bounds)
    columns = rank + max(32, min(rank, 64))
    if exact or min(m, n) <= _EXACT_BELOW or columns > 0.7 * min(m, n):
        return _lapack(delta, rank, total)
    iteration = SubspaceIteration(delta, half, total, columns, seed, start)
    return iteration.run(rank, tolerance, certify) or _lapack(delta, rank, total)


def _lapack(delta: Tensor, rank: int, total: float) -> LowRank:
    """All singular values. LAPACK's are those of a matrix within max(m, n) eps sigma_1 of D."""
    wide = delta.shape[0] < delta.shape[1]
    scale = math.sqrt(total)
    tall = delta.T if wide else delta
    if min(delta.shape) <= _FLOAT64_BELOW:
        tall = tall.double()
    q, r = torch.linalg.qr(tall / scale)
    u, s, vt = _svd_of_triangle(r)
    u = q @ u[:, :rank]
    u, vt = (vt[:rank].T, u.T) if wide else (u, vt[:rank])
    u, vt = u.to(delta.dtype).contiguous(), vt.to(delta.dtype).contiguous()
    values = s.double().cpu()
    backward = max(delta.shape) * torch.finfo(s.dtype).eps * float(values[0])
    bounds = ErrorBounds(
        squared_norm=1.0,
        values=values[:rank],
        upper=values[:rank].square(),
        squared_residual=squared_residual(delta, u, values[:rank], vt, scale),
        resolution=backward**2,
        squared_tail=float(values[rank:].square().sum()),
        storage=torch.finfo(delta.dtype).eps / 2,
    ).scaled(total)
    return LowRank(u, bounds.values, vt, bounds, "lapack", 1)


def _svd_of_triangle(r: Tensor) -> tuple[Tensor, ...]:
    """U, S, Vt of R (n, n), on its device. A GPU's small ones are decomposed on the host by one
    thread, as other small eigenproblems are (`blocks`)."""
    if r.device.type == "cpu" or len(r) > _EXACT_BELOW:
        return torch.linalg.svd(r, full_matrices=False)
    return tuple(part.to(r.device) for part in small_svd(r))


def _zero(delta: Tensor, total: float) -> LowRank:
    m, n = delta.shape
    empty = torch.zeros(0, dtype=torch.float64)
    bounds = ErrorBounds(total, empty, empty, total, 0.0, squared_tail=total)
    return LowRank(delta.new_zeros(m, 0), empty, delta.new_zeros(0, n), bounds, "zero", 1)
