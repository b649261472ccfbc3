"""The best low-rank approximation of a change on the inputs that a projection really gets.

For inputs x with second moment C = E[x x'], the mean square of the error (D - B A) x is
||(D - B A) L||_F^2 for any root C = L L'. L is invertible, so B A L runs through all matrices of
rank r when B A does, and by Eckart and Young the optimum is given by the truncated SVD of D L ~
U S V'. The data-aware SVDs of weights (SVD-LLM, arXiv 2403.07378) are the same for W in place of D.
The optimum V_r' L^-1 needs no inverse: U_r S_r V_r' = U_r U_r' D L, so

    B A = U_r U_r' D,

which is finite for every C, singular ones included, and never has a larger error than D itself
in either norm.

C is scaled to a mean eigenvalue of 1, so that the weighted norms of projections with large and
small inputs are comparable, as ||D||_F is; then `DAMPING` I is added (as in GPTQ, arXiv
2210.17323) and C is scaled again. Directions that no input had count that little, and not nothing.
Inputs that are zero throughout say nothing: then C = I.

The certificate is that of M, the computed product D L, in the plain norm (see `certificate`):
||M - U S V'|| and a lower bound on ||M - X|| for all X of rank r. It carries over to the weighted
norm with two corrections, both shares of ||M|| in `perturbation`:

1. M = D L + F. A float64 product with sums of n terms has ||F|| <= n u ||D|| ||L|| / (1 - n u) in
   the Frobenius norm, with u = 2^-53, and ||L||^2 = tr C = n. Every X is at most ||F|| nearer to
   D L than to M.
2. U'U = I + E. The rows of U_r'M are the best coefficients of M in the columns of U_r if E = 0, so
   ||M - U_r U_r' M|| <= ||M - U_r S_r V_r'|| + 2 ||E|| ||M||. ||E||_F is measured.

So ||(D - B A) L|| <= ||M - U_r S_r V_r'|| + (||F|| / ||M|| + 2 ||E||) ||M||, and the optimum is at
least that of M less ||F||. C stands for L L' as computed, which Cholesky's backward error (n u tr C
at most) keeps far nearer to the true sum than `DAMPING`. A deviation of the calibration's C from
that of other texts is no error of this kind: the certificate is on the given C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regraft.lowrank.blocks import row_blocks
from regraft.lowrank.low_rank import LowRank
from regraft.lowrank.noise import InputSpectrum
from regraft.lowrank.svd import truncated_svd

DAMPING = 0.01  # of the mean eigenvalue of C
_LEADING = 64  # eigenvalues of C that the noise floor knows one by one
_UNIT = 2.0**-53


@dataclass(frozen=True)
class WeightedNorm:
    """||X L||_F for matrices X (m, n). root: L (n, n) lower triangular in float64, tr L L' = n;
    spectrum: of L L'."""

    root: Tensor
    spectrum: InputSpectrum

    @classmethod
    def from_moment(cls, moment: Tensor, damping: float = DAMPING) -> WeightedNorm:
        """The norm for a second moment (n, n) in float64 of any scale, which is overwritten.

        Raises ValueError where it is not finite or not positive semidefinite.
        """
        n = moment.shape[0]
        mean = float(moment.diagonal().sum()) / n
        if not math.isfinite(mean) or mean < 0:
            raise ValueError("a second moment has a finite trace of at least 0")
        if mean == 0:
            root = torch.eye(n, dtype=moment.dtype, device=moment.device)
        else:
            moment.div_(mean * (1 + damping)).diagonal().add_(damping / (1 + damping))
            root, failed = torch.linalg.cholesky_ex(moment)
            if int(failed):
                raise ValueError("a second moment is positive semidefinite")
        leading = truncated_svd(root, min(n, _LEADING), certify=False).S.square()
        return cls(root, InputSpectrum(tuple(leading.tolist()), n))

    def product(self, matrix: Tensor) -> Tensor:
        """X L in float64, a few rows at a time."""
        result = torch.empty(matrix.shape, dtype=torch.float64, device=matrix.device)
        start = 0
        for rows in row_blocks(matrix):
            torch.mm(rows.double(), self.root, out=result[start : start + len(rows)])
            start += len(rows)
        return result

    def certified(self, svd: LowRank, delta_norm: float) -> LowRank:
        """The SVD of a product D L, with bounds that hold for B A = U U'D in this norm.

        delta_norm: ||D||_F.
        """
        n, norm = self.root.shape[0], math.sqrt(svd.squared_norm)
        product = n * _UNIT / (1 - n * _UNIT) * delta_norm * math.sqrt(n) / norm
        u = svd.U.double()
        identity = torch.eye(svd.rank, dtype=u.dtype, device=u.device)
        basis = float(torch.linalg.matrix_norm(u.T @ u - identity)) if svd.rank else 0.0
        bounds = replace(svd.bounds, perturbation=product + 2 * basis)
        return replace(svd, bounds=bounds)


@dataclass(frozen=True)
class WeightedFactors:
    """B A = U U'D, balanced, in float64. b (m, r), a (r, n); squared_parts: (r,), ||u_i'D||^2, by
    which each direction lowers ||D - B A||_F^2."""

    b: Tensor
    a: Tensor
    squared_parts: Tensor


def weighted_factors(delta: Tensor, u: Tensor) -> WeightedFactors:
    """The factors for D (m, n) and orthonormal columns U (m, r)."""
    u = u.double()
    parts = torch.zeros(u.shape[1], delta.shape[1], dtype=torch.float64, device=delta.device)
    start = 0
    for rows in row_blocks(delta):
        parts += u[start : start + len(rows)].T @ rows.double()
        start += len(rows)
    norms = torch.linalg.vector_norm(parts, dim=1)
    root = norms.sqrt()
    a = parts / torch.where(root > 0, root, 1.0)[:, None]
    return WeightedFactors(u * root, a, norms.square().cpu())
