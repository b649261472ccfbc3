"""A low-rank approximation as factors, the bounds on its error, and the error of storing it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regraft.lowrank.blocks import row_blocks
from regraft.lowrank.certificate import ErrorBounds


@dataclass(frozen=True)
class LowRank:
    """D ~ U diag(S) Vt: (m, k), (k,) float64 descending, (k, n), and the bounds on its error.

    `method` is 'subspace', 'lapack' or 'zero', `passes` the number of products with D.
    """

    U: Tensor
    S: Tensor
    Vt: Tensor
    bounds: ErrorBounds
    method: str
    passes: int

    @property
    def rank(self) -> int:
        """k, the number of singular values."""
        return self.S.numel()

    @property
    def squared_norm(self) -> float:
        """||D||_F^2."""
        return self.bounds.squared_norm

    def squared_error(self, rank: int | None = None) -> float:
        """||D - U_r S_r V_r'||_F^2 as computed."""
        return self.bounds.squared_error(rank)

    def error(self, rank: int | None = None) -> float:
        """||D - U_r S_r V_r'||_F / ||D||_F, 0 for a zero matrix."""
        return math.sqrt(self.squared_error(rank) / self.squared_norm) if self.squared_norm else 0.0

    def certificate(self, rank: int | None = None) -> float:
        """Upper bound on error / (error of the exact rank-r SVD), see `ErrorBounds.certificate`."""
        return self.bounds.certificate(rank)

    def truncated(self, rank: int) -> LowRank:
        """The same decomposition cut to `rank` leading values."""
        return replace(
            self,
            U=self.U[:, :rank],
            S=self.S[:rank],
            Vt=self.Vt[:rank],
            bounds=self.bounds.truncated(rank),
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """(B, A), (m, r) and (r, n): B = U sqrt(S), A = sqrt(S) V', LoRA's names, balanced."""
        root = self.S.sqrt().to(self.U)
        return self.U * root, root[:, None] * self.Vt


def squared_residual(delta: Tensor, u: Tensor, s: Tensor, vt: Tensor, scale: float) -> float:
    """||D / scale - U S Vt||^2 of the factors as stored, by subtraction in float64."""
    scaled = s.to(vt.device)[:, None] * vt.double()
    blocks = row_blocks(delta)
    rows = [len(block) for block in blocks]
    return math.fsum(
        float(torch.linalg.vector_norm(d.double() / scale - b.double() @ scaled)) ** 2
        for d, b in zip(blocks, u.split(rows), strict=True)
    )


def rounding_error(exact: tuple[Tensor, Tensor], stored: tuple[Tensor, Tensor]) -> float:
    """||B A - B' A'||_F^2 of two factor pairs, in float64 from Gram matrices: no dense product."""
    (b, a), (b2, a2) = exact, stored
    left = torch.cat([b.double(), b2.double() - b.double()], 1)
    right = torch.cat([a2.double() - a.double(), a2.double()], 0)
    # B'A' - BA = B (A'-A) + (B'-B) A'
    return max(float(((left.T @ left) * (right @ right.T)).sum()), 0.0)
