"""Truncated SVD of one large matrix with a certificate of how near it is to the best one.

Algorithm: randomised subspace iteration (Halko, Martinsson, Tropp, "Finding structure with
randomness", arXiv 0909.4061), half-steps in bfloat16 where the processor multiplies bfloat16 fast
(they only have to find a subspace), the last two in float32 (they decide the numbers). One pass
over a 14336 x 4096 matrix costs 0.02 s in bfloat16 and 0.08 s in float32 on two cores; a full SVD
of it takes minutes. Small matrices go to LAPACK.

Iteration goes on until the certificate (see `certificate`) is at most 1 + tolerance, or until only
the arithmetic keeps it above. Where the values kept hold so much of ||D||^2 that float32 cannot
certify the rest, products go on in float64 (`_continue_in_float64`). Where the Krylov probe runs in
bfloat16, the rounding of D is allowed for as noise spread evenly over the matrix
(`_copy_rounding`); one dominating row would make more, which is not covered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from regraft.device import fast_bfloat16
from regraft.lowrank.blocks import (
    eigenvalues,
    eigenvectors,
    gaussian,
    gram,
    orthonormal,
    row_blocks,
    small_svd,
    squared_frobenius,
)
from regraft.lowrank.certificate import (
    FLOAT64_RESOLUTION,
    PROBES,
    ErrorBounds,
    SpectrumBounds,
    krylov_shortfall,
    product_rounding,
)

_EXACT_BELOW = 256  # min(m, n) up to which LAPACK is the faster way
_FLOAT64_BELOW = 2048  # min(m, n) up to which LAPACK works in float64
# mean squares beyond which a copy scaled by a power of two is decomposed: bfloat16 instructions
# take numbers below 1e-38 for zero, and float32 ends at 3e38
_LEAST_SQUARE, _LARGEST_SQUARE = 1e-40, 1e40
_MAX_ROUNDS = 40
_POWER_STEPS = 3  # before the first projection
_STEEP = 1e4  # ratio of squared singular values in the block beyond which bfloat16 is too coarse


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
        return self.S.numel()

    @property
    def squared_norm(self) -> float:
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
    infinite) or the error is at the level of the arithmetic (then it says so by a larger value).
    `exact` uses LAPACK (QR first, so tall matrices cost no more than square ones). `half` is the
    same matrix in bfloat16 if the caller has it, `squared_norm` its ||.||_F^2 in float64, `start`
    (n, k) a basis to begin from, leading directions first. Deterministic for a seed, a thread count
    and a library version.

    Raises ValueError for what is no matrix, or not finite.
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
    return _SubspaceIteration(delta, half, total, columns, seed, start).run(
        rank, tolerance, certify
    )


def rounding_error(exact: tuple[Tensor, Tensor], stored: tuple[Tensor, Tensor]) -> float:
    """||B A - B' A'||_F^2 of two factor pairs, in float64 from Gram matrices: no dense product."""
    (b, a), (b2, a2) = exact, stored
    left = torch.cat([b.double(), b2.double() - b.double()], 1)
    right = torch.cat([a2.double() - a.double(), a2.double()], 0)
    # B'A' - BA = B (A'-A) + (B'-B) A'
    return max(float(((left.T @ left) * (right @ right.T)).sum()), 0.0)


def _zero(delta: Tensor, total: float) -> LowRank:
    m, n = delta.shape
    empty = torch.zeros(0, dtype=torch.float64)
    bounds = ErrorBounds(total, empty, empty, total, 0.0, squared_tail=total)
    return LowRank(delta.new_zeros(m, 0), empty, delta.new_zeros(0, n), bounds, "zero", 1)


def _lapack(delta: Tensor, rank: int, total: float) -> LowRank:
    """All singular values. LAPACK's are those of a matrix within max(m, n) eps sigma_1 of D."""
    wide = delta.shape[0] < delta.shape[1]
    scale = math.sqrt(total)
    tall = delta.T if wide else delta
    if min(delta.shape) <= _FLOAT64_BELOW:
        tall = tall.double()
    q, r = torch.linalg.qr(tall / scale)
    u, s, vt = torch.linalg.svd(r, full_matrices=False)
    u = q @ u[:, :rank]
    u, vt = (vt[:rank].T, u.T) if wide else (u, vt[:rank])
    u, vt = u.to(delta.dtype).contiguous(), vt.to(delta.dtype).contiguous()
    values = s.double().cpu()
    backward = max(delta.shape) * torch.finfo(s.dtype).eps * float(values[0])
    bounds = ErrorBounds(
        squared_norm=1.0,
        values=values[:rank],
        upper=values[:rank].square(),
        squared_residual=_squared_residual(delta, u, values[:rank], vt, scale),
        resolution=backward**2,
        squared_tail=float(values[rank:].square().sum()),
        storage=torch.finfo(delta.dtype).eps / 2,
    ).scaled(total)
    return LowRank(u, bounds.values, vt, bounds, "lapack", 1)


def _squared_residual(delta: Tensor, u: Tensor, s: Tensor, vt: Tensor, scale: float) -> float:
    """||D / scale - U S Vt||^2 of the factors as stored, by subtraction in float64."""
    scaled = s.to(vt.device)[:, None] * vt.double()
    blocks = row_blocks(delta)
    rows = [len(block) for block in blocks]
    return math.fsum(
        float(torch.linalg.vector_norm(d.double() / scale - b.double() @ scaled)) ** 2
        for d, b in zip(blocks, u.split(rows), strict=True)
    )


class _SubspaceIteration:
    """One matrix being decomposed: the block basis, the products, the probe.

    All of it is about D / ||D||, so that squares stay within float32's range. Names: V `basis`
    (n, q), B = DV `image`, Q `left` (m, q) orthonormal with B's span, Y = D'Q `right`.
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
        self.scale = 1 / math.sqrt(total)
        self.probe_is_full = False  # the probe would fill all that the block leaves
        self.in_float64 = delta.dtype == torch.float64
        self.resolution: float | None = FLOAT64_RESOLUTION if self.in_float64 else None
        if half is None:
            fast = delta.dtype == torch.float32 and fast_bfloat16(delta.device)
            half = delta.to(torch.bfloat16) if fast else delta
        self.half = half
        self.passes = 0
        self.basis = gaussian(delta.shape[1], columns, seed, delta)
        if start is not None:
            known = start[:, :columns]
            self.basis[:, : known.shape[1]] = known

    def run(self, rank: int, tolerance: float, certify: bool) -> LowRank:
        self._power(_POWER_STEPS)
        for _ in range(_MAX_ROUNDS):
            result = self._project(rank)
            if not certify:
                return self._unscaled(result)
            resolution = result.bounds.resolution
            if not self.in_float64 and result.squared_error() < 4 * resolution / tolerance:
                self._continue_in_float64()
                continue
            spectrum = SpectrumBounds(self.ritz, self._spill())
            optimistic = spectrum.above(float(self.ritz[0]))
            if self._suffices(_with_upper(result, optimistic[:rank]), tolerance):
                certified = self._certify(result, spectrum, tolerance)
                if certified is not None:
                    return self._unscaled(certified)
                if self.probe_is_full:
                    break
            self.basis = self.right
            if self.in_float64 or float(self.ritz[-1]) < _STEEP * float(self.ritz[0].clamp_min(0)):
                self._power(1)  # in a steep spectrum rounding would blur the small directions
        return _lapack(self.delta, rank, self.total)

    def _suffices(self, result: LowRank, tolerance: float) -> bool:
        """Whether the certificate is within `tolerance`, or only the arithmetic keeps it above."""
        bounds = result.bounds
        if result.certificate() <= 1 + tolerance:
            return True
        return self.in_float64 and bounds.excess(bounds.rank) <= bounds.resolution

    def _continue_in_float64(self) -> None:
        """From here on products are in float64: where the leading values hold nearly all of ||D||,
        the rounding of their squares in float32 exceeds what the bound on the rest may cost."""
        self.in_float64, self.half, self.resolution = True, self.delta, FLOAT64_RESOLUTION
        self.basis = self.right.double()

    def _unscaled(self, result: LowRank) -> LowRank:
        """The decomposition of D from that of D / ||D||."""
        bounds = result.bounds.scaled(self.total)
        return replace(result, S=bounds.values, bounds=bounds)

    def _product(self, matrix: Tensor, block: Tensor) -> Tensor:
        """matrix @ block / ||D||, `matrix` being D, its fast copy, or the transpose of one."""
        self.passes += 1
        if self.in_float64:
            return self._float64_product(matrix.stride() == self.delta.stride(), block)
        block = block.to(matrix.dtype)
        if matrix.is_contiguous() and (matrix.dtype == self.delta.dtype or _has_amx()):
            product = matrix @ block
        else:  # (X'D')': kernels like the long side last, but for tiles of bfloat16
            product = (block.T @ matrix.T).T
        product = product.to(self.delta.dtype)
        return product.mul_(self.scale)

    def _float64_product(self, plain: bool, block: Tensor) -> Tensor:
        """D X or D'X in float64, a few rows of D at a time."""
        block = block.double() * self.scale
        blocks = row_blocks(self.delta)
        if plain:
            return torch.cat([rows.double() @ block for rows in blocks])
        result = block.new_zeros(self.delta.shape[1], block.shape[1])
        start = 0
        for rows in blocks:
            result += rows.double().T @ block[start : start + len(rows)]
            start += len(rows)
        return result

    def _power(self, steps: int) -> None:
        """Whole steps with the fast copy: the basis turns towards the leading right space."""
        for _ in range(steps):
            left = orthonormal(self._product(self.half, self.basis), strict=False)
            self.basis = self._product(self.half.T, left)

    def _project(self, rank: int) -> LowRank:
        """The last two half-steps, in full precision, and Rayleigh-Ritz on their left space."""
        self.basis = orthonormal(self.basis, strict=True)
        self.image = self._product(self.delta, self.basis)
        self.left = orthonormal(self.image, strict=True)
        self.right = self._product(self.delta.T, self.left)
        self.ritz, self.ritz_vectors = eigenvectors(gram(self.image))
        if self.resolution is None:
            self.resolution = self._measured_resolution()
        q = orthonormal(self.right, strict=True)
        r = q.T @ self.right
        u, s, vt = small_svd(r.T)
        u = (self.left.double() @ u[:, :rank].to(q.device)).to(self.delta.dtype)
        vt = (vt[:rank].to(q.device) @ q.double().T).to(self.delta.dtype)
        values = s[:rank]
        residual = max(1 - float(values.square().sum()), 0.0)
        if self.in_float64:
            residual = _squared_residual(self.delta, u, values, vt, 1 / self.scale)
        bounds = ErrorBounds(
            squared_norm=1.0,
            values=values,
            upper=torch.full((rank,), math.inf, dtype=torch.float64),
            squared_residual=residual,
            resolution=self.resolution,
            storage=torch.finfo(self.delta.dtype).eps / 2,
        )
        return LowRank(u, values, vt, bounds, "subspace", self.passes)

    def _measured_resolution(self) -> float:
        """`resolution` of `certificate`'s docstring for the products as this machine makes them."""
        unit = torch.finfo(self.delta.dtype).eps / 2
        rounding = product_rounding(self.delta, self.basis, self.image, self.scale)
        rounding += product_rounding(self.delta.T, self.left, self.right, self.scale)
        return 8 * unit + 2 * rounding

    def _spill(self) -> Tensor:
        """E'E (q, q) in the basis of H's eigenvectors, E = (I - VV') D'B."""
        triangle = self.left.T @ self.image
        spill = self.right @ triangle
        spill -= self.basis @ (self.basis.T @ spill)
        return self.ritz_vectors.T @ gram(spill) @ self.ritz_vectors

    def _certify(
        self, result: LowRank, spectrum: SpectrumBounds, tolerance: float
    ) -> LowRank | None:
        """`result` with bounds on its spectrum; None if more power steps are needed."""
        rounding = self._copy_rounding()
        if rounding:
            certified = self._probe(result, spectrum, tolerance, self.half, rounding)
            if certified is not _TOO_COARSE:
                return certified
        return self._probe(result, spectrum, tolerance, self.delta, 0.0)

    def _probe(
        self,
        result: LowRank,
        spectrum: SpectrumBounds,
        tolerance: float,
        matrix: Tensor,
        rounding: float,
    ) -> LowRank | None:
        """Raise the probe's accuracy until the bound on mu certifies `result`. None if no bound on
        mu can, or `_TOO_COARSE` if only the rounding of `matrix` stands in the way."""
        rank = result.rank
        remainder = max(1 - float(self.ritz.sum()), 0.0) + result.bounds.resolution
        n = self.delta.shape[1]
        probe = gaussian(n, PROBES, self.seed + 1, self.basis)
        blocks: list[Tensor] = []
        images: list[Tensor] = []
        mu = remainder

        def with_mu(bound: float) -> LowRank:
            return _with_upper(result, spectrum.above(bound)[:rank])

        for steps in range(1, 25):
            certified = with_mu(mu)
            if self._suffices(certified, tolerance):
                return replace(certified, passes=self.passes)
            self.probe_is_full = self.columns + steps * PROBES > min(self.delta.shape)
            if self.probe_is_full:
                return None
            if steps > 1:
                probe = self._product(matrix.T, images[-1])
            for _ in range(2):
                for other in (self.basis, *blocks):
                    probe = probe - other @ (other.T @ probe)
            probe = orthonormal(probe, strict=True)
            blocks.append(probe)
            images.append(self._product(matrix, probe))
            shortfall = krylov_shortfall(steps, n)
            if shortfall < 0.9:
                stacked = torch.cat(images, 1)
                largest = float(eigenvalues((stacked.T @ stacked).double().cpu())[-1])
                if not self._suffices(with_mu(largest), tolerance):
                    return None  # not even with the lower bound of mu
                coarse = (math.sqrt(largest) + rounding) ** 2
                if rounding and not self._suffices(with_mu(coarse), tolerance):
                    return _TOO_COARSE
                mu = min(remainder, (math.sqrt(largest / (1 - shortfall)) + rounding) ** 2)
        return _TOO_COARSE if rounding else None

    def _copy_rounding(self) -> float:
        """Spectral norm, relative to ||D||, of rounding to the fast copy: at most twice the edge of
        a random matrix with the mean square of independent roundings, u^2/3 that of D."""
        if self.half.dtype == self.delta.dtype:
            return 0.0
        m, n = self.delta.shape
        unit = torch.finfo(self.half.dtype).eps / 2
        return 2 * unit / math.sqrt(3) * (1 / math.sqrt(m) + 1 / math.sqrt(n))


def _with_upper(result: LowRank, upper: Tensor) -> LowRank:
    return replace(result, bounds=replace(result.bounds, upper=upper))


@lru_cache
def _has_amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


_TOO_COARSE = _zero(torch.zeros(0, 0), 0.0)
