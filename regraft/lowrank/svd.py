"""Certified truncated SVD: the best rank-r approximation of a matrix, and a proof that it is.

Algorithm: randomised subspace iteration (Halko, Martinsson, Tropp, "Finding structure with
randomness", arXiv 0909.4061), half-steps in bfloat16 where the chip multiplies bfloat16 fast (they
only have to find a subspace), the last two in float32 (they decide the numbers). One pass over a
14336 x 4096 matrix costs 0.02 s in bfloat16 and 0.08 s in float32 on two cores; a full SVD of it
takes minutes.

What is new here is the certificate. Let V (n x q) be the orthonormal basis before the last
half-steps, H = (DV)'(DV), E = D'DV - VH, and mu >= ||D(I - VV')||_2^2. The Schur complement of
D'D in the basis [V, V_perp] gives, for every eta > mu and every i,

    sigma_i(D)^2 <= max(eta, lambda_i(H + E'E / (eta - mu))),

with no gap needed between the values kept and dropped. Summed over i <= r it bounds from above
what *any* rank-r matrix can capture, so error / optimum is bounded from above by computed numbers.
mu comes from a block Krylov probe of the deflated matrix with Gaussian starts: how far the largest
Ritz value of a Krylov space can lie below the largest eigenvalue is bounded as in Kuczynski and
Wozniakowski (SIAM J. Matrix Anal. Appl. 13, 1992), sharpened for blocks in `_krylov_shortfall`; it
is wrong with probability at most `_FAILURE` per matrix. Where the probe runs in bfloat16, the
rounding of D is allowed for as noise spread evenly over the matrix (`_rounding`); one dominating
row would make more, which is not covered. Where the values kept hold nearly all of ||D||, products
go on in float64 (`_widen`). Iteration goes on until the ratio is at most 1 + tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from regraft.device import single_threaded

_FAILURE = 1e-6  # probability that the certificate of one matrix is wrong
_FINE = (4 * 2.0**-23) ** 2  # of ||D||^2: float32 numbers say nothing of an error below its root
_PROBES = 32  # columns of the Krylov probe
_EXACT_BELOW = 256  # min(m, n) up to which LAPACK is the faster way
_MAX_ROUNDS = 40
_POWER_STEPS = 3  # before the first projection
_NEAR_EXACT = 2.5e-3  # squared relative error below which float32's rounding hides 0.1% of it
_STEEP = 1e4  # ratio of squared singular values in the block beyond which bfloat16 is too coarse


@dataclass(frozen=True)
class LowRank:
    """D ~ U diag(S) Vt: (m, k), (k,) float64 descending, (k, n), and what is known of the rest.

    `squared_norm` is ||D||_F^2; `upper` (k,) float64 bounds sigma_i^2 from above, so that
    `certificate(r)` bounds the error at any r <= rank against the optimum's.
    """

    U: Tensor
    S: Tensor
    Vt: Tensor
    squared_norm: float
    upper: Tensor
    method: str
    passes: int
    squared_residual: float | None = None  # measured ||D - U S Vt||^2 where subtraction cancels
    resolution: float = 4 * 2.0**-23  # of ||D||^2: what the arithmetic may have added to `upper`

    @property
    def rank(self) -> int:
        return self.S.numel()

    def squared_error(self, rank: int | None = None) -> float:
        """||D - U_r S_r V_r'||_F^2 = ||D||^2 - sum of the r leading s^2: U spans a projection."""
        rank = self.rank if rank is None else rank
        dropped = float(self.S[rank:].square().sum())
        if self.squared_residual is not None:
            return self.squared_residual + dropped
        return max(self.squared_norm - float(self.S[:rank].square().sum()), 0.0)

    def error(self, rank: int | None = None) -> float:
        """||D - U_r S_r V_r'||_F / ||D||_F, 0 for a zero matrix."""
        return math.sqrt(self.squared_error(rank) / self.squared_norm) if self.squared_norm else 0.0

    def certificate(self, rank: int | None = None) -> float:
        """Upper bound on error / (error of the exact rank-r SVD); 1 means optimal."""
        return self.ratio(self.upper, self.rank if rank is None else rank)

    def ratio(self, upper: Tensor, rank: int) -> float:
        """`certificate` for other bounds (q,) on sigma_i^2. Squares of singular values are known to
        the rounding of the arithmetic, so `resolution` ||D||^2 of the excess is forgiven."""
        achieved = self.squared_error(rank)
        excess = float((upper[:rank] - self.S[:rank].square()).clamp_min(0).sum())
        excess = max(excess - self.resolution * self.squared_norm, 0.0)
        if excess == 0:
            return 1.0
        return math.sqrt(achieved / (achieved - excess)) if excess < achieved else math.inf

    def truncated(self, rank: int) -> LowRank:
        """The same decomposition cut to `rank` leading values."""
        return replace(
            self,
            U=self.U[:, :rank],
            S=self.S[:rank],
            Vt=self.Vt[:rank],
            upper=self.upper[:rank],
            squared_residual=None if self.squared_residual is None else self.squared_error(rank),
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """(B, A), (m, r) and (r, n): B = U sqrt(S), A = sqrt(S) V', LoRA's names, balanced."""
        root = self.S.sqrt().to(self.U)
        return self.U * root, root[:, None] * self.Vt


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

    The Frobenius error is at most (1 + tolerance) times that of the exact truncated SVD, proven
    a posteriori (see the module's docstring) unless `certify` is False. `exact` uses LAPACK
    (QR first, so tall matrices cost no more than square ones). `half` is the same matrix in
    bfloat16 if the caller has it, `squared_norm` its ||.||_F^2, `start` (n, k) a basis to begin
    from, leading directions first. Deterministic for a seed, a thread count and a library version.
    """
    if delta.ndim != 2:
        raise ValueError(f"truncated_svd takes a matrix, not shape {tuple(delta.shape)}")
    m, n = delta.shape
    rank = max(0, min(rank, m, n))
    total = squared_frobenius(delta) if squared_norm is None else squared_norm
    if rank == 0 or total == 0.0:
        return _zero(delta, total)
    columns = rank + max(32, min(rank, 64))
    if exact or min(m, n) <= _EXACT_BELOW or columns > 0.7 * min(m, n):
        return _lapack(delta, rank, total)
    return _Iteration(delta, half, total, columns, seed, start).run(rank, tolerance, certify)


def squared_frobenius(matrix: Tensor) -> float:
    """||D||_F^2 with float64 accumulation over row blocks that stay in cache."""
    rows = max(1, 2**20 // max(1, matrix.shape[1]))
    return sum(
        float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
        for block in matrix.split(rows)
    )


def fast_half(device: torch.device) -> bool:
    """Whether bfloat16 products beat float32 ones here: by the chip, never by timing."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


@lru_cache
def _amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def rounding_error(exact: tuple[Tensor, Tensor], stored: tuple[Tensor, Tensor]) -> float:
    """||B A - B' A'||_F^2 of two factor pairs, in float64 from Gram matrices: no dense product."""
    (b, a), (b2, a2) = exact, stored
    left = torch.cat([b.float(), b2.float() - b.float()], 1)
    right = torch.cat([a2.float() - a.float(), a2.float()], 0)
    # B'A' - BA = B (A'-A) + (B'-B) A'
    gram_left = left.double().T @ left.double()
    gram_right = right.double() @ right.double().T
    return max(float((gram_left * gram_right).sum()), 0.0)


def _zero(delta: Tensor, total: float) -> LowRank:
    m, n = delta.shape
    empty = torch.zeros(0, dtype=torch.float64)
    return LowRank(delta.new_zeros(m, 0), empty, delta.new_zeros(0, n), total, empty, "zero", 1)


def _lapack(delta: Tensor, rank: int, total: float) -> LowRank:
    wide = delta.shape[0] < delta.shape[1]
    tall = delta.T if wide else delta
    if min(delta.shape) <= 2048:
        tall = tall.double()
    q, r = torch.linalg.qr(tall)
    u, s, vt = torch.linalg.svd(r, full_matrices=False)
    u = q @ u[:, :rank]
    u, vt = (vt[:rank].T, u.T) if wide else (u, vt[:rank])
    values = s.double().cpu()
    return LowRank(
        u.to(delta.dtype).contiguous(),
        values[:rank],
        vt.to(delta.dtype).contiguous(),
        total,
        values[:rank].square(),
        "lapack",
        1,
        float(values[rank:].square().sum()),
    )


class _Iteration:
    """One matrix being decomposed: the block basis, the products, the probe.

    All of it is about D / ||D||, so that squares of squares stay within float32's range.
    """

    def __init__(
        self,
        delta: Tensor,
        half: Tensor | None,
        total: float,
        columns: int,
        seed: int,
        start: Tensor | None,
    ) -> None:
        self.delta, self.total, self.columns, self.seed = delta, total, columns, seed
        self.exhausted = False  # the probe has filled what the block leaves
        self.wide = False  # products in float64
        self.resolution = 4 * torch.finfo(delta.dtype).eps
        if half is None:
            quick = delta.dtype == torch.float32 and fast_half(delta.device)
            half = delta.to(torch.bfloat16) if quick else delta
        self.half = half
        self.passes = 0
        self.bounds: _Bounds | None = None
        first = _gaussian(delta.shape[1], columns, seed, delta)
        if start is not None:
            known = start[:, :columns]
            first[:, : known.shape[1]] = known
        self.basis = first

    def run(self, rank: int, tolerance: float, certify: bool) -> LowRank:
        self._power(_POWER_STEPS)
        for _ in range(_MAX_ROUNDS):
            result = self._project(rank, certify)
            if self.bounds is None:
                return self._in_full(result)
            if result.squared_error() < _NEAR_EXACT and self.resolution > _FINE:
                self._widen()
                continue
            optimistic = self.bounds.above(float(self.ritz[0]))
            if result.ratio(optimistic, rank) <= 1 + tolerance:
                certified = self._certify(result, self.bounds, rank, tolerance)
                if certified is not None:
                    return self._in_full(certified)
                if self.exhausted:
                    break
            self.basis = self.right
            if self.wide or float(self.ritz[-1]) < _STEEP * float(self.ritz[0].clamp_min(0)):
                self._power(1)  # in a steep spectrum rounding would blur the small directions
        return _lapack(self.delta, rank, self.total)

    def _widen(self) -> None:
        """Go on in float64: where the leading values hold nearly all of ||D||, the rounding of
        their squares in float32 exceeds the slack that the bound on the rest may have. The numbers
        of D are float32's all the same, so an error at their own rounding counts as none."""
        self.wide, self.half, self.resolution = True, self.delta, _FINE
        self.basis = self.right.double()

    def _in_full(self, result: LowRank) -> LowRank:
        """The decomposition of D from that of D / ||D||."""
        residual = result.squared_residual
        return replace(
            result,
            S=result.S * math.sqrt(self.total),
            squared_norm=self.total,
            upper=result.upper * self.total,
            squared_residual=None if residual is None else residual * self.total,
        )

    def _product(self, matrix: Tensor, block: Tensor) -> Tensor:
        self.passes += 1
        if self.wide:
            return self._wide_product(matrix.stride() == self.delta.stride(), block)
        block = block.to(matrix.dtype)
        if matrix.is_contiguous() and (matrix.dtype == self.delta.dtype or _amx()):
            product = matrix @ block
        else:  # (X'D')': kernels like the long side last, but for tiles of bfloat16
            product = (block.T @ matrix.T).T
        product = product.to(self.delta.dtype)
        return product.mul_(1 / math.sqrt(self.total))

    def _wide_product(self, plain: bool, block: Tensor) -> Tensor:
        """D X or D'X in float64, a few rows of D at a time."""
        block = block.double() / math.sqrt(self.total)
        rows = self.delta.split(max(1, 2**20 // self.delta.shape[1]))
        if plain:
            return torch.cat([part.double() @ block for part in rows])
        result = block.new_zeros(self.delta.shape[1], block.shape[1])
        start = 0
        for part in rows:
            result += part.double().T @ block[start : start + len(part)]
            start += len(part)
        return result

    def _power(self, steps: int) -> None:
        """Whole steps with the fast copy: the basis turns towards the leading right space."""
        for _ in range(steps):
            left = _orthonormal(self._product(self.half, self.basis), strict=False)
            self.basis = self._product(self.half.T, left)

    def _project(self, rank: int, certify: bool) -> LowRank:
        """The last two half-steps, in full precision, and Rayleigh-Ritz on their left space."""
        basis = _orthonormal(self.basis, strict=True)
        image = self._product(self.delta, basis)
        left = _orthonormal(image, strict=True)
        triangle = left.T @ image
        right = self._product(self.delta.T, left)  # (n, q) = D'Q
        hessian = (image.T @ image).double()
        hessian = (hessian + hessian.T) / 2
        spill = right @ triangle
        spill -= basis @ (basis.T @ spill)
        self.basis, self.right = basis, right
        gram = (spill.T @ spill).double()
        with single_threaded():
            self.ritz, vectors = torch.linalg.eigh(hessian)
        spilled = vectors.T @ ((gram + gram.T) / 2) @ vectors
        self.bounds = _Bounds(self.ritz, spilled) if certify else None
        q = _orthonormal(right, strict=True)
        r = q.T @ right
        with single_threaded():
            u, s, vt = torch.linalg.svd(r.T.double(), full_matrices=False)
        u = (left @ u[:, :rank].to(left.dtype)).to(self.delta.dtype)
        vt = (vt[:rank].to(q.dtype) @ q.T).to(self.delta.dtype)
        values = s.cpu()
        residual: float | None = None
        if 1 - float(values[:rank].square().sum()) < 1e-4:
            residual = self._residual(u, values[:rank], vt)
        return LowRank(
            u,
            values[:rank],
            vt,
            1.0,
            torch.full((rank,), math.inf, dtype=torch.float64),
            "subspace",
            self.passes,
            residual,
            self.resolution,
        )

    def _residual(self, u: Tensor, s: Tensor, vt: Tensor) -> float:
        """||D - U S Vt||^2 by subtraction, block by block: where 1 - sum s^2 would cancel."""
        dtype = torch.float64 if self.wide else u.dtype
        scaled = (s * math.sqrt(self.total)).to(u)[:, None].to(dtype) * vt.to(dtype)
        rows = max(1, 2**20 // self.delta.shape[1])
        squared = sum(
            float(torch.linalg.vector_norm(d.to(dtype) - b.to(dtype) @ scaled)) ** 2
            for d, b in zip(self.delta.split(rows), u.split(rows), strict=True)
        )
        return squared / self.total

    def _certify(
        self, result: LowRank, bounds: _Bounds, rank: int, tolerance: float
    ) -> LowRank | None:
        """Raise the probe's accuracy until the ratio is proven, or give up (more power steps)."""
        rounding = self._rounding()
        if rounding:
            proven = self._probe(result, bounds, rank, tolerance, self.half, rounding)
            if proven is not _TOO_COARSE:
                return proven
        return self._probe(result, bounds, rank, tolerance, self.delta, 0.0)

    def _probe(
        self,
        result: LowRank,
        bounds: _Bounds,
        rank: int,
        tolerance: float,
        matrix: Tensor,
        rounding: float,
    ) -> LowRank | None:
        """`result` with its proven bounds, None if no bound on mu can prove it, or `_TOO_COARSE`
        if only the rounding of `matrix` stands in the way."""
        remainder = max(1 - float(self.ritz.sum()), 0.0)
        n = self.delta.shape[1]
        probe = _gaussian(n, _PROBES, self.seed + 1, self.basis)
        blocks: list[Tensor] = []
        images: list[Tensor] = []
        bound = remainder
        for steps in range(1, 25):
            upper = bounds.above(bound)[:rank]
            if result.ratio(upper, rank) <= 1 + tolerance:
                return replace(result, upper=upper, passes=self.passes)
            self.exhausted = self.columns + steps * _PROBES > min(self.delta.shape)
            if self.exhausted:
                return None
            if steps > 1:
                probe = self._product(matrix.T, images[-1])
            for _ in range(2):
                for other in (self.basis, *blocks):
                    probe = probe - other @ (other.T @ probe)
            probe = _orthonormal(probe, strict=True)
            blocks.append(probe)
            images.append(self._product(matrix, probe))
            shortfall = _krylov_shortfall(steps, n)
            if shortfall < 0.9:
                stacked = torch.cat(images, 1)
                seen = float(_eigenvalues((stacked.T @ stacked).double())[-1])
                if result.ratio(bounds.above(seen), rank) > 1 + tolerance:
                    return None  # not even with the lower bound of mu: more power steps needed
                coarse = (math.sqrt(seen) + rounding) ** 2
                if rounding and result.ratio(bounds.above(coarse), rank) > 1 + tolerance:
                    return _TOO_COARSE
                bound = min(remainder, (math.sqrt(seen / (1 - shortfall)) + rounding) ** 2)
        return _TOO_COARSE if rounding else None

    def _rounding(self) -> float:
        """Spectral norm, relative to ||D||, of rounding to the fast copy: at most twice the edge of
        a random matrix with the mean square of independent roundings, u^2/3 that of D."""
        if self.half.dtype == self.delta.dtype:
            return 0.0
        m, n = self.delta.shape
        unit = torch.finfo(self.half.dtype).eps / 2
        return 2 * unit / math.sqrt(3) * (1 / math.sqrt(m) + 1 / math.sqrt(n))


_TOO_COARSE = _zero(torch.zeros(0, 0), 0.0)


@lru_cache(maxsize=256)
def _krylov_shortfall(steps: int, n: int) -> float:
    """epsilon such that a block Krylov space of `steps` blocks from `_PROBES` Gaussian columns
    in R^n holds a Ritz value of at least (1 - epsilon) lambda_1, but for probability `_FAILURE`.

    Some combination of the columns is a u_1 + z with a^2 ~ chi^2 of `_PROBES` degrees and |z|^2 ~
    chi^2 of n - 1. Applying the Chebyshev polynomial T of degree steps - 1 on [0, (1 - epsilon)
    lambda_1] to it gives such a Ritz value if epsilon T((1 + epsilon) / (1 - epsilon))^2 a^2 is at
    least (1 - epsilon) |z|^2. Near 1 where nothing can be said.
    """
    slack = math.log(2 / _FAILURE)
    rest = n + 2 * math.sqrt(n * slack) + 2 * slack  # Laurent and Massart's bound on chi^2
    ratio = rest / _chi_square_low(_PROBES, _FAILURE / 2)

    def enough(epsilon: float) -> bool:
        angle = (steps - 1) * math.acosh((1 + epsilon) / (1 - epsilon))
        # log of cosh^2, which overflows
        grown = 2 * (angle + math.log1p(math.exp(-2 * angle)) - math.log(2))
        return grown >= math.log(ratio * (1 - epsilon) / epsilon)

    return _smallest(enough, 1e-6, 1 - 1e-6)


def _chi_square_low(degrees: int, probability: float) -> float:
    """The value that a chi^2 variable stays below with `probability`."""
    half = torch.tensor(degrees / 2, dtype=torch.float64)

    def reached(x: float) -> bool:
        below = torch.special.gammainc(half, torch.tensor(x / 2, dtype=torch.float64))
        return float(below) >= probability

    return _smallest(reached, 1e-12, float(degrees))


def _smallest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least x in [low, high] at which a monotone condition holds; `high` if it never does."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


class _Bounds:
    """Upper bounds on the leading sigma_i^2 for any mu, from a few eigenvalue problems done once.

    With gap = eta - mu, lambda_i(H + E'E / gap) depends on the gap alone.
    """

    def __init__(self, ritz: Tensor, spill: Tensor) -> None:
        top, low = float(ritz[-1]), max(float(ritz[0]), 1e-16 * float(ritz[-1]))
        count = 6 + int(1.5 * math.log(top / low))
        self.gaps = torch.logspace(
            math.log10(0.01 * low), math.log10(0.8 * top), count, dtype=torch.float64
        ).tolist()
        self.raised = [_eigenvalues(torch.diag(ritz) + spill / gap) for gap in self.gaps]

    def above(self, mu: float) -> Tensor:
        """(q,) descending; valid if mu >= ||D(I - VV')||_2^2."""
        best = torch.full_like(self.raised[0], math.inf)
        for gap, values in zip(self.gaps, self.raised, strict=True):
            best = torch.minimum(best, values.clamp_min(mu + gap))
        return best.flip(0)


def _eigenvalues(symmetric: Tensor) -> Tensor:
    with single_threaded():
        return torch.linalg.eigvalsh((symmetric + symmetric.T) / 2).cpu()


def _orthonormal(block: Tensor, *, strict: bool) -> Tensor:
    """Orthonormal columns with the span of `block` (m, q): Cholesky-QR, twice if `strict`, and
    Householder QR where the columns are too nearly dependent for it."""
    scale = torch.linalg.vector_norm(block, dim=0).clamp_min(torch.finfo(block.dtype).tiny)
    result = block / scale
    for _ in range(2 if strict else 1):
        gram = (result.T @ result).double()
        factor, failed = torch.linalg.cholesky_ex((gram + gram.T) / 2)
        pivots = factor.diagonal()
        if int(failed) or float(pivots.min()) < 3e-3 * float(pivots.max()):
            return torch.linalg.qr(block / scale)[0]
        inverse = torch.linalg.solve_triangular(
            factor,
            torch.eye(factor.shape[0], dtype=factor.dtype, device=factor.device),
            upper=False,
        )
        result = result @ inverse.T.to(result.dtype)
    return result


def _gaussian(rows: int, columns: int, seed: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float32).to(like)
