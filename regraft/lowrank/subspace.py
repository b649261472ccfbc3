"""Randomised subspace iteration for the leading singular triplets of a large matrix, certified.

Algorithm: Halko, Martinsson, Tropp, "Finding structure with randomness", arXiv 0909.4061, with
half-steps in bfloat16 where the processor multiplies bfloat16 fast (they only have to find a
subspace), the last two in float32 (they decide the numbers). One pass over a 14336 x 4096 matrix
costs 0.02 s in bfloat16 and 0.08 s in float32 on two cores; a full SVD of it takes minutes.

Iteration continues until the certificate (see `certificate`) is at most 1 + tolerance, or until
only rounding keeps it above. Where the leading values hold so much of ||D||^2 that float32 cannot
certify the rest, further products are in float64 (`_continue_in_float64`). Where the Krylov probe
runs in bfloat16, the rounding of D counts as noise spread evenly over the matrix
(`_copy_rounding`); a single dominating row would cause more, which is not covered.
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import Enum
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
)
from regraft.lowrank.certificate import (
    FLOAT64_RESOLUTION,
    PROBES,
    ErrorBounds,
    SpectrumBounds,
    krylov_shortfall,
    product_rounding,
)
from regraft.lowrank.low_rank import LowRank, squared_residual

_MAX_ROUNDS = 40
_POWER_STEPS = 3  # before the first projection
_STEEP = 1e4  # ratio of squared singular values in the block beyond which bfloat16 is too coarse


class Failure(Enum):
    """Why a probe gives no certificate: the subspace needs more power steps, or the rounding of the
    matrix's bfloat16 copy is too large."""

    NOT_CONVERGED = 0
    TOO_COARSE = 1


class SubspaceIteration:
    """The decomposition of one matrix: the block basis, the products, the probe.

    It works on D / ||D||, so that squares stay within float32's range. Names: V `basis`
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
        self.probe_is_full = False  # block and probe together would span the whole space
        self.in_float64 = delta.dtype == torch.float64
        self.resolution: float | None = FLOAT64_RESOLUTION if self.in_float64 else None
        if half is None:
            fast = delta.dtype == torch.float32 and fast_bfloat16(delta.device)
            half = delta.to(torch.bfloat16) if fast else delta
        self.half = half
        self.passes = 0
        self.basis = gaussian(delta.shape[1], columns, seed, delta)
        if start is not None:
            known = start[:, :columns].to(self.basis)
            self.basis = torch.cat([known, self.basis[:, known.shape[1] :]], 1)

    def run(self, rank: int, tolerance: float, certify: bool) -> LowRank | None:
        """The decomposition at `rank`, None where iteration reaches no certificate."""
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
        return None

    def _suffices(self, result: LowRank, tolerance: float) -> bool:
        """Whether the certificate is within `tolerance`, or only the arithmetic keeps it above."""
        bounds = result.bounds
        if result.certificate() <= 1 + tolerance:
            return True
        return self.in_float64 and bounds.excess(bounds.rank) <= bounds.resolution

    def _continue_in_float64(self) -> None:
        """Compute further products in float64.

        Where the leading values hold nearly all of ||D||, the rounding of their squares in float32
        is larger than the bound on the rest allows.
        """
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
        else:  # (X'D')': except for bfloat16 tiles, kernels are faster with the long side last
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
        """Power steps with the fast copy, which turn the basis towards the leading right space."""
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
            residual = squared_residual(self.delta, u, values, vt, 1 / self.scale)
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
        """`resolution` (see `certificate`) of the products as this machine computes them."""
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
            if certified is not Failure.TOO_COARSE:
                return certified if isinstance(certified, LowRank) else None
        certified = self._probe(result, spectrum, tolerance, self.delta, 0.0)
        return certified if isinstance(certified, LowRank) else None

    def _probe(
        self,
        result: LowRank,
        spectrum: SpectrumBounds,
        tolerance: float,
        matrix: Tensor,
        rounding: float,
    ) -> LowRank | Failure:
        """Raise the probe's accuracy until the bound on mu certifies `result`."""
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
                return Failure.NOT_CONVERGED
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
                    return Failure.NOT_CONVERGED  # not even with the lower bound of mu
                coarse = (math.sqrt(largest) + rounding) ** 2
                if rounding and not self._suffices(with_mu(coarse), tolerance):
                    return Failure.TOO_COARSE
                mu = min(remainder, (math.sqrt(largest / (1 - shortfall)) + rounding) ** 2)
        return Failure.TOO_COARSE if rounding else Failure.NOT_CONVERGED

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
