"""The noise floor of a delta: the rounding of two stored checkpoints in their difference.

Rounding adds full-rank noise to every delta, about 0.17% of the weights' norm in bfloat16. Singular
values below the Marchenko-Pastur edge of that noise, sigma (sqrt(m) + sqrt(n)), are no part of the
change, and an energy threshold that ignores the edge encodes rounding. The edge's finite-size
spread follows Johnstone (Annals of Statistics 29, 2001).

In a weighted norm (see `weighted`) noise N counts as N L, C = L L'. Of Gaussian N with variance v
the largest singular value is at most sqrt(v) (sqrt(m lambda_1) + sqrt(tr C)) in the mean (Chevet),
and exceeds its mean by t sqrt(v lambda_1) with a probability below exp(-t^2 / 2). Without the i - 1
leading eigenvectors of C the same holds for lambda_i and the rest of the trace, and by Weyl it
bounds the i-th singular value of N L: each direction has an edge of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_TRACY_WIDOM_999 = 3.2724  # 99.9% quantile of the Tracy-Widom law of order 1
_DEVIATION_999 = math.sqrt(2 * math.log(1000))  # of a Lipschitz function of normal numbers
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
class InputSpectrum:
    """The eigenvalues of the second moment C (n, n) of a projection's inputs, scaled to tr C = n.

    leading: some, descending; the others count as the last of these.
    """

    leading: tuple[float, ...]
    n: int

    def first(self, count: int) -> Tensor:
        """(count,) float64, descending."""
        known = torch.tensor(self.leading[:count], dtype=torch.float64)
        return torch.nn.functional.pad(known, (0, count - len(known)), value=self.leading[-1])

    def rest(self, count: int) -> Tensor:
        """(count,) float64: the sum of all eigenvalues from the i-th on."""
        before = self.first(count).cumsum(0) - self.first(count)
        return (self.n - before).clamp_min(0)

    def edges(self, variance: float, m: int, count: int) -> Tensor:
        """(count,) float64: bounds on the first singular values of weighted noise (m, n)."""
        root = self.first(count).sqrt()
        return math.sqrt(variance) * (
            (math.sqrt(m) + _DEVIATION_999) * root + self.rest(count).sqrt()
        )


@dataclass(frozen=True)
class Floor:
    """The noise floor of one delta. variance: per entry; edge: largest singular value of the noise,
    in a weighted norm that of the first direction at or below its edge; above: number of singular
    values above the edge; inputs: in a weighted norm."""

    variance: float
    edge: float
    above: int
    inputs: InputSpectrum | None = None


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
    change. In a weighted norm its first-order form, s^2 = t^2 + v (n + m lambda_i), is inverted.
    """
    m, n = shape
    squares = singular.double().square()
    if floor.inputs is not None:
        noise = floor.variance * (n + m * floor.inputs.first(len(squares)))
        above = torch.arange(len(squares)) < floor.above
        return torch.where(above, (squares - noise).clamp_min(0), 0.0)
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
    singular: Tensor,
    squared_norm: float,
    shape: tuple[int, int],
    noise: Noise,
    inputs: InputSpectrum | None = None,
) -> Floor:
    """The noise floor of a delta, from its leading singular values (k,) and ||D||_F^2.

    The variance is that of the residual below the edge, clamped to `noise.low` and `noise.high`: a
    residual larger than two roundings can cause is not rounding. The edge is never below the
    resolution of float32. inputs: in a weighted norm, where `singular` and `squared_norm` are of
    D L.
    """
    if inputs is not None:
        return _weighted_floor(singular, squared_norm, shape[0], noise, inputs)
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


def _weighted_floor(
    singular: Tensor, squared_norm: float, m: int, noise: Noise, inputs: InputSpectrum
) -> Floor:
    resolved = _RESOLUTION * math.sqrt(squared_norm)
    squares, count = singular.square(), singular.numel()
    variance, above = noise.high, 0
    rest = inputs.rest(count + 1)
    for _ in range(count + 1):
        edges = inputs.edges(variance, m, count + 1).clamp_min(resolved)
        above = int((singular > edges[:count]).cumprod(0).sum())
        missed = squared_norm - float(squares[:above].sum())
        residual = max(missed, 0.0) / max(1.0, (m - above) * float(rest[above]))
        lower = min(max(residual, noise.low), variance)
        if lower >= variance * (1 - 1e-3):
            break
        variance = lower
    edge = max(float(inputs.edges(variance, m, above + 1)[above]), resolved)
    return Floor(variance, edge, above, inputs)
