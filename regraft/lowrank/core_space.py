"""The joint core space of several low-rank matrices (core space merging, arXiv 2509.17786).

With U an orthonormal basis of the columns of all B_i and V one of the rows of all A_i,

    B_i A_i = U M_i V',    M_i = U' B_i A_i V

exactly, and M_i has at most as many rows and columns as the ranks sum to. Whatever a method makes
of the M_i, U M V' is low-rank: neither a dense matrix nor a truncation is needed. U and V are the
singular vectors of the factors side by side, as in the paper; here every B_i A_i is first split
into balanced factors (U sqrt(S), sqrt(S) V' of its SVD), so that they depend on the matrices alone
and not on how each was split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_DEPENDENT = 1e-10  # share of the largest singular value below which a direction is rounding


@dataclass(frozen=True)
class CoreSpace:
    """U (m, p) and V (n, q) with orthonormal columns, and a core (p, q) for each matrix,
    float64."""

    left: Tensor
    right: Tensor
    cores: list[Tensor]

    def factors(self, core: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
        """(B, A, singular values) with B A = U core V', balanced. least: share of the largest
        singular value up to which the others are dropped."""
        u, values, vt = torch.linalg.svd(core)
        rank = int((values > least * values[:1]).sum())
        root = values[:rank].sqrt()
        b = self.left @ (u[:, :rank] * root)
        return b, (root[:, None] * vt[:rank]) @ self.right.T, values[:rank]


def core_space(factors: Sequence[tuple[Tensor, Tensor]]) -> CoreSpace:
    """The core space of B_i A_i, from factors (m, r_i) and (r_i, n) of any ranks."""
    ranks = [b.shape[1] for b, _ in factors]
    # Two QR factorisations, of all columns and of all rows; the rest is in small matrices.
    q, r = torch.linalg.qr(torch.cat([b.double() for b, _ in factors], 1))
    p, s = torch.linalg.qr(torch.cat([a.double() for _, a in factors], 0).T)
    pairs = list(zip(r.split(ranks, 1), s.split(ranks, 1), strict=True))
    balanced = [_balanced(b, a) for b, a in pairs]
    left, right = (_basis(torch.cat(parts, 1)) for parts in zip(*balanced, strict=True))
    cores = [(left.T @ b) @ (a.T @ right) for b, a in pairs]
    return CoreSpace(q @ left, p @ right, cores)


def _balanced(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """U sqrt(S) and V sqrt(S) of B A', for B (m, r) and A (n, r)."""
    (q, r), (p, s) = torch.linalg.qr(b), torch.linalg.qr(a)
    u, values, vt = torch.linalg.svd(r @ s.T, full_matrices=False)
    root = values.sqrt()
    return q @ (u * root), p @ (vt.T * root)


def _basis(columns: Tensor) -> Tensor:
    """The left singular vectors of the columns, without those that are rounding."""
    u, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return u[:, values > _DEPENDENT * values[:1]]
