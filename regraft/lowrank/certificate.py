"""Bounds on the error of a computed rank-r approximation, and on that of the best one.

Let V (n x q) be the orthonormal basis before the last two half-steps of a subspace iteration,
H = (DV)'(DV), E = D'DV - VH, and mu >= ||D(I - VV')||_2^2. The Schur complement of D'D in the basis
[V, V_perp] gives, for every eta > mu and every i,

    sigma_i(D)^2 <= max(eta, lambda_i(H + E'E / (eta - mu))),

without a gap between retained and discarded values. The sum over i <= r bounds from above what
any rank-r matrix can capture, so ||D||^2 minus that sum bounds the optimum from below.

mu comes from a block Krylov probe of the deflated matrix with Gaussian starts. The distance of the
largest Ritz value of a Krylov space below the largest eigenvalue is bounded as in Kuczynski and
Wozniakowski (SIAM J. Matrix Anal. Appl. 13, 1992), sharpened for blocks in `krylov_shortfall`; the
bound is wrong with probability at most `FAILURE` per matrix.

The bounds hold in exact arithmetic. Rounding is part of the reported number: `ErrorBounds` adds
`resolution` ||D||^2 to the squared error and subtracts it from the bound on the optimum. To first
order, products B = DV + F and Y = D'Q + G change sums of squares by 2 <F, B> and 2 <G, Y>, at most
2 ||F|| and 2 ||G|| where ||D|| = 1, so

    resolution = 8 u + 2 (||F|| + ||G||),

u being the unit roundoff: eight roundings to storage (both bases, both products, both orthonormal
factors, S and ||D||^2) change squares by u each, and ||F||, ||G|| are measured on rows of D against
float64 (`product_rounding`), because they depend on the processor, its instruction set and its
settings. Products in float64 have `FLOAT64_RESOLUTION`: sums of up to 2^26 squares whose roundings
of 2^-53 are independent grow as their root, 2^-40.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from regraft.lowrank.blocks import eigenvalues

FAILURE = 1e-6  # probability that the certificate of one matrix is wrong
PROBES = 32  # columns of the Krylov probe
FLOAT64_RESOLUTION = 2.0**-40
_SUBTRACTION = 2.0**-46  # of ||D||: rounding of D - U S Vt in float64, root(k) 2^-53 for k triplets
_SAMPLED_ROWS = 64


@dataclass(frozen=True)
class ErrorBounds:
    """Bounds on the error of D ~ U diag(S) Vt at every rank r <= k.

    squared_norm: ||D||_F^2.
    values: (k,) float64, S, descending.
    upper: (k,) float64, bounds on sigma_i(D)^2 from above; infinite where nothing was certified.
    squared_residual: ||D - U S Vt||_F^2 at rank k.
    resolution: largest change of a sum of squares by rounding, as a share of `squared_norm`.
    squared_tail: the sum of the squares of the singular values beyond k where all were computed.
        Then `upper` is not needed and `resolution` is the square of LAPACK's backward error, by
        which the distance to the nearest matrix of rank r can change at most.
    storage: unit roundoff of the dtype in which U and Vt are stored.
    shortened: whether trailing triplets were discarded after `squared_residual` was computed.
    perturbation: distance of D from the matrix that the bounds are wanted for, as a share of
        ||D||_F (see `weighted`).
    """

    squared_norm: float
    values: Tensor
    upper: Tensor
    squared_residual: float
    resolution: float
    squared_tail: float | None = None
    storage: float = 2.0**-24
    shortened: bool = False
    perturbation: float = 0.0

    @property
    def rank(self) -> int:
        """k, the number of triplets."""
        return self.values.numel()

    def squared_error(self, rank: int | None = None) -> float:
        """||D - U_r S_r Vt_r||_F^2 as computed, without allowance for rounding."""
        rank = self.rank if rank is None else rank
        return self.squared_residual + float(self.values[rank:].square().sum())

    def largest_error(self, rank: int | None = None) -> float:
        """Upper bound on ||D - U_r S_r Vt_r||_F.

        Discarding trailing triplets removes exactly their energy if the stored factors are
        orthonormal. Each factor is orthonormal up to `storage`, and so are its two parts.
        """
        rank = self.rank if rank is None else rank
        squared = self.squared_error(rank)
        if self.squared_tail is None:
            squared += self.resolution * self.squared_norm
        allowance = _SUBTRACTION + self.perturbation
        if self.shortened or rank < self.rank:
            allowance += 4 * self.storage
        error = math.sqrt(squared) * (1 + FLOAT64_RESOLUTION)
        return error + allowance * math.sqrt(self.squared_norm)

    def least_error(self, rank: int | None = None) -> float:
        """Lower bound on ||D - X||_F over all X of rank r."""
        rank = self.rank if rank is None else rank
        perturbed = self.perturbation * math.sqrt(self.squared_norm)
        if self.squared_tail is not None:
            discarded = self.squared_tail + float(self.values[rank:].square().sum())
            backward = math.sqrt(self.resolution * self.squared_norm)
            least = math.sqrt(discarded) * (1 - FLOAT64_RESOLUTION) - backward
        else:
            captured = float(self.upper[:rank].sum())
            least = math.sqrt(max((1 - self.resolution) * self.squared_norm - captured, 0.0))
        return max(least - perturbed, 0.0)

    def certificate(self, rank: int | None = None) -> float:
        """Upper bound on the error at rank r over that of the exact rank-r SVD, at least 1.

        Infinite where the optimum cannot be distinguished from zero: its square is below
        `resolution` ||D||^2, or nothing was certified. `largest_error` holds there, too.
        """
        if self.squared_norm == 0.0 or rank == 0 or not self.rank:
            return 1.0
        least = self.least_error(rank)
        return max(self.largest_error(rank) / least, 1.0) if least else math.inf

    def excess(self, rank: int) -> float:
        """Bound on what a rank-r matrix can capture beyond U_r S_r Vt_r, as a share of ||D||^2."""
        above = (self.upper[:rank] - self.values[:rank].square()).clamp_min(0)
        return float(above.sum()) / self.squared_norm

    def truncated(self, rank: int) -> ErrorBounds:
        """The bounds of the leading `rank` triplets alone."""
        if rank >= self.rank:
            return self
        tail = self.squared_tail
        if tail is not None:
            tail += float(self.values[rank:].square().sum())
        return replace(
            self,
            values=self.values[:rank],
            upper=self.upper[:rank],
            squared_residual=self.squared_error(rank),
            squared_tail=tail,
            shortened=True,
        )

    def scaled(self, square: float) -> ErrorBounds:
        """The bounds of c D from those of D, `square` = c^2."""
        tail = None if self.squared_tail is None else self.squared_tail * square
        return replace(
            self,
            squared_norm=self.squared_norm * square,
            values=self.values * math.sqrt(square),
            upper=self.upper * square,
            squared_residual=self.squared_residual * square,
            squared_tail=tail,
        )


class SpectrumBounds:
    """Upper bounds on the leading sigma_i^2 for any mu, from a few eigenproblems solved once.

    With gap = eta - mu, lambda_i(H + E'E / gap) depends on the gap alone. `ritz` (q,) ascending are
    the eigenvalues of H, `spill` (q, q) is E'E in the basis of its eigenvectors.
    """

    def __init__(self, ritz: Tensor, spill: Tensor) -> None:
        top, low = float(ritz[-1]), max(float(ritz[0]), 1e-16 * float(ritz[-1]))
        count = 6 + int(1.5 * math.log(top / low))
        self.gaps = torch.logspace(
            math.log10(0.01 * low), math.log10(0.8 * top), count, dtype=torch.float64
        ).tolist()
        self.raised = [eigenvalues(torch.diag(ritz) + spill / gap) for gap in self.gaps]

    def above(self, mu: float) -> Tensor:
        """Upper bounds (q,), descending; they hold if mu >= ||D(I - VV')||_2^2."""
        best = torch.full_like(self.raised[0], math.inf)
        for gap, values in zip(self.gaps, self.raised, strict=True):
            best = torch.minimum(best, values.clamp_min(mu + gap))
        return best.flip(0)


def product_rounding(matrix: Tensor, block: Tensor, product: Tensor, scale: float) -> float:
    """Largest ||row of F|| / ||row of D|| over evenly spaced rows, where `product` (m, q) =
    (D X + F) * scale was computed from D = `matrix` (m, n) and X = `block` (n, q)."""
    step = max(1, matrix.shape[0] // _SAMPLED_ROWS)
    rows = matrix[::step].double()
    norms = torch.linalg.vector_norm(rows, dim=1) * scale
    rounding = product[::step].double() - (rows @ block.double()) * scale
    nonzero = norms > 0
    if not bool(nonzero.any()):
        return 0.0
    return float((torch.linalg.vector_norm(rounding, dim=1)[nonzero] / norms[nonzero]).max())


@lru_cache(maxsize=256)
def krylov_shortfall(steps: int, n: int) -> float:
    """epsilon such that a block Krylov space of `steps` blocks from `PROBES` Gaussian columns
    in R^n has a Ritz value of at least (1 - epsilon) lambda_1, except with probability `FAILURE`.

    Some combination of the columns is a u_1 + z with a^2 ~ chi^2 of `PROBES` degrees and |z|^2 ~
    chi^2 of n - 1. Applying the Chebyshev polynomial T of degree steps - 1 on [0, (1 - epsilon)
    lambda_1] to it gives such a Ritz value if epsilon T((1 + epsilon) / (1 - epsilon))^2 a^2 is at
    least (1 - epsilon) |z|^2. Close to 1 where there is no useful bound.
    """
    slack = math.log(2 / FAILURE)
    rest = n + 2 * math.sqrt(n * slack) + 2 * slack  # Laurent and Massart's bound on chi^2
    ratio = rest / _chi_square_quantile(PROBES, FAILURE / 2)

    def enough(epsilon: float) -> bool:
        angle = (steps - 1) * math.acosh((1 + epsilon) / (1 - epsilon))
        # log of cosh^2, which overflows
        log_growth = 2 * (angle + math.log1p(math.exp(-2 * angle)) - math.log(2))
        return log_growth >= math.log(ratio * (1 - epsilon) / epsilon)

    return _least(enough, 1e-6, 1 - 1e-6)


def _chi_square_quantile(degrees: int, probability: float) -> float:
    """The quantile of chi^2 at `probability`."""
    half = torch.tensor(degrees / 2, dtype=torch.float64)

    def reached(x: float) -> bool:
        below = torch.special.gammainc(half, torch.tensor(x / 2, dtype=torch.float64))
        return float(below) >= probability

    return _least(reached, 1e-12, float(degrees))


def _least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least x in [low, high] at which a monotone condition holds; `high` if it never does."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
