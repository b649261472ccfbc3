"""The noise floor of a delta: the rounding of two stored checkpoints in their difference.

Rounding adds full-rank noise to every delta, about 0.17% of the weights' norm in bfloat16. Singular
values below the Marchenko-Pastur edge of that noise, sigma (sqrt(m) + sqrt(n)), are no part of the
change, and an energy threshold that ignores the edge encodes rounding. The edge's finite-size
spread follows Johnstone (Annals of Statistics 29, 2001).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_TRACY_WIDOM_999 = 3.2724  # 99.9% quantile of the Tracy-Widom law of order 1
_SAMPLED_ROWS = 64
_RESOLUTION = 2.0**-25  # of ||D||: singular values below it are float32's own arithmetic


@dataclass(frozen=True)
class Noise:
    """Possible variance per entry of the rounding in the difference of two checkpoints.

    low: only the extended checkpoint was rounded (its training began with the stored base).
    high: both were rounded independently, so their variances add.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Floor:
    """The noise floor of one delta. variance: per entry; edge: largest singular value of the noise;
    above: number of singular values above the edge."""

    variance: float
    edge: float
    above: int


def noise_edge(variance: float, m: int, n: int) -> float:
    """The 99.9% quantile of the largest singular value of an (m, n) matrix of independent noise."""
    centre = (math.sqrt(m) + math.sqrt(n)) ** 2
    spread = (math.sqrt(m) + math.sqrt(n)) * (1 / math.sqrt(m) + 1 / math.sqrt(n)) ** (1 / 3)
    return math.sqrt(variance * (centre + _TRACY_WIDOM_999 * spread))


def denoised_squares(singular: Tensor, floor: Floor, shape: tuple[int, int]) -> Tensor:
    """Squared singular values (k,) of the change itself, float64; zero at and below the edge.

    Noise of variance v lifts a value t of an (m, n) matrix to s with
    s^2 = (t^2 + m v) (t^2 + n v) / t^2 (Benaych-Georges and Nadakuditi, arXiv 1103.2221); this is
    the larger root for t^2. Without it the noise along the leading directions would count as
    change.
    """
    m, n = shape
    squares = singular.double().square()
    excess = squares - floor.variance * (m + n)
    root = (excess.square() - 4 * m * n * floor.variance**2).clamp_min(0).sqrt()
    return torch.where(singular.double() > floor.edge, (excess + root) / 2, 0.0)


def rounding_noise(base: Tensor, extended: Tensor) -> Noise:
    """The rounding of two checkpoints, from the spacing of their numbers in evenly spaced rows.

    A float32 tensor whose numbers all fit bfloat16 or float16 was rounded to that type.
    """
    own, other = _rounding_variance(extended), _rounding_variance(base)
    return Noise(low=own, high=own + other)


def _rounding_variance(matrix: Tensor) -> float:
    """Mean of ulp(w)^2 / 12 over a sample of rows."""
    step = max(1, matrix.shape[0] // _SAMPLED_ROWS)
    rows = matrix[::step]
    eps = torch.finfo(matrix.dtype).eps
    for coarser in (torch.bfloat16, torch.float16):
        if eps < torch.finfo(coarser).eps and torch.equal(rows.to(coarser).to(rows.dtype), rows):
            eps = torch.finfo(coarser).eps
    values = rows.to(torch.float64 if matrix.dtype == torch.float64 else torch.float32)
    exponents = torch.frexp(values[values != 0])[1].to(torch.int64)
    if not exponents.numel():
        return 0.0
    lowest = int(exponents.min())
    counts = torch.bincount(exponents - lowest).cpu().double()  # a few dozen numbers
    ulps = torch.exp2(lowest + torch.arange(counts.numel(), dtype=torch.float64)) * (eps / 2)
    return float((counts * ulps.square()).sum()) / values.numel() / 12


def noise_floor(
    singular: Tensor, squared_norm: float, shape: tuple[int, int], noise: Noise
) -> Floor:
    """The noise floor of a delta, from its leading singular values (k,) and ||D||_F^2.

    The variance is that of the residual below the edge, clamped to `noise.low` and `noise.high`: a
    residual larger than two roundings can cause is not rounding. The edge is never below the
    resolution of float32.
    """
    m, n = shape
    resolved = _RESOLUTION * math.sqrt(squared_norm)
    squares = singular.square()
    variance = noise.high
    above = 0
    for _ in range(singular.numel() + 1):
        edge = max(noise_edge(variance, m, n), resolved)
        above = int((singular > edge).sum())
        rest = squared_norm - float(squares[:above].sum())
        residual = max(rest, 0.0) / max(1, (m - above) * (n - above))
        lower = min(max(residual, noise.low), variance)
        if lower >= variance * (1 - 1e-3):
            break
        variance = lower
    return Floor(variance, max(noise_edge(variance, m, n), resolved), above)
