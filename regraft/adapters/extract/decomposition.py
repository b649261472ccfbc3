"""The decomposition of one module's delta: spectrum, bounds and tails, without the factors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from regraft.lowrank.certificate import ErrorBounds
from regraft.lowrank.noise import Floor, InputSpectrum, denoised_squares


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """The decomposition of one module's delta D; its factors are in the spool.

    spectrum, upper: computed singular values, and proven upper bounds on D's own. above: how many
    are above the noise edge. rank: by the rank rule. noise_variance: of the rounding of the two
    checkpoints, per entry. squared_residual: ||D - U S V'||_F^2. resolution, squared_tail,
    shortened, perturbation: see `ErrorBounds`.

    Of a calibrated extraction (see `lowrank.weighted`) spectrum, upper, above, rank, noise_edge and
    squared_residual are those of D L, and weighted_norm is ||D L||_F. inputs: leading eigenvalues
    of C; squared_parts: by which each direction lowers ||D - B A||_F^2.
    """

    shape: list[int]
    delta_norm: float
    relative_delta: float
    spectrum: list[float]
    upper: list[float]
    above: int
    rank: int = 0
    noise_variance: float = 0.0
    noise_edge: float = 0.0
    squared_residual: float = 0.0
    resolution: float = 0.0
    squared_tail: float | None = None
    shortened: bool = False
    perturbation: float = 0.0
    weighted_norm: float | None = None
    inputs: list[float] = field(default_factory=list)
    squared_parts: list[float] = field(default_factory=list)
    method: str = "zero"
    passes: int = 0

    @property
    def unchanged(self) -> bool:
        """Whether D is zero."""
        return self.delta_norm == 0.0

    @property
    def squared_norm(self) -> float:
        """||D||_F^2, or ||D L||_F^2 in a calibrated extraction."""
        norm = self.delta_norm if self.weighted_norm is None else self.weighted_norm
        return norm**2

    @property
    def squared_signal(self) -> float:
        """`squared_norm` less the expected share of the rounding of the two checkpoints; since tr C
        = n it is the same in both norms."""
        return max(self.squared_norm - math.prod(self.shape) * self.noise_variance, 0.0)

    def captured_signal(self) -> list[float]:
        """The part of `squared_signal` in the first r directions, r = 0, 1, ..."""
        inputs = InputSpectrum(tuple(self.inputs), self.shape[1]) if self.inputs else None
        floor = Floor(self.noise_variance, self.noise_edge, self.above, inputs)
        spectrum = torch.tensor(self.spectrum, dtype=torch.float64)
        squares = denoised_squares(spectrum, floor, (self.shape[0], self.shape[1]))
        return [0.0, *squares.cumsum(0).clamp_max(self.squared_signal).tolist()]

    def missed_signal(self) -> list[float]:
        """The rest of `squared_signal`, r = 0, 1, ..."""
        return [self.squared_signal - captured for captured in self.captured_signal()]

    def squared_tails(self) -> list[float]:
        """||D - D_r||_F^2 of the first r directions, r = 0, 1, ..., in the norm of the
        extraction."""
        squares = torch.tensor(self.spectrum, dtype=torch.float64).square()
        tails = squares.flip(0).cumsum(0).flip(0).tolist()
        return [self.squared_residual + tail for tail in (*tails, 0.0)]

    def plain_tails(self) -> list[float]:
        """The same in the plain norm."""
        if self.weighted_norm is None:
            return self.squared_tails()
        parts = torch.tensor([0.0, *self.squared_parts], dtype=torch.float64)
        return (self.delta_norm**2 - parts.cumsum(0)).clamp_min(0).tolist()

    def bounds(self) -> ErrorBounds:
        """The bounds on the error in the norm of the extraction."""
        return ErrorBounds(
            squared_norm=self.squared_norm,
            values=torch.tensor(self.spectrum, dtype=torch.float64),
            upper=torch.tensor(self.upper, dtype=torch.float64),
            squared_residual=self.squared_residual,
            resolution=self.resolution,
            squared_tail=self.squared_tail,
            shortened=self.shortened,
            perturbation=self.perturbation,
        )
