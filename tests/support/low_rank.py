"""Matrices of a given spectrum, and what every decomposition of them must satisfy."""

from __future__ import annotations

import math

import pytest
import torch

from regraft.lowrank.low_rank import LowRank

SPECTRA = {
    "power law 0.5": lambda k: torch.arange(1, k + 1).double() ** -0.5,
    "power law 1": lambda k: torch.arange(1, k + 1).double() ** -1.0,
    "power law 2": lambda k: torch.arange(1, k + 1).double() ** -2.0,
    "exponential": lambda k: torch.exp(-torch.arange(k).double() / 8),
    "steep": lambda k: torch.exp(-torch.arange(k).double()).clamp_min(1e-12),
    "flat": lambda k: torch.ones(k).double(),
    "repeated": lambda k: torch.cat([torch.full((k // 4,), 2.0), torch.ones(k - k // 4)]).double(),
    "step inside the block": lambda k: torch.cat([torch.ones(40), torch.zeros(k - 40)]).double(),
    "one value over a tail of 1e-2": lambda k: _one_value_over_a_tail(k, 1e-2),
    "one value over a tail of 1e-4": lambda k: _one_value_over_a_tail(k, 1e-4),
}


def matrix(spectrum: torch.Tensor, m: int, n: int, seed: int = 0) -> torch.Tensor:
    """A float32 matrix (m, n) with this spectrum and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    k = spectrum.numel()
    u, v = (
        torch.linalg.qr(torch.randn(rows, k, generator=generator, dtype=torch.float64))[0]
        for rows in (m, n)
    )
    return ((u * spectrum) @ v.T).float()


def ratio_to_optimum(delta: torch.Tensor, result: LowRank) -> float:
    """Error of the factors as stored over that of the exact SVD, both in float64."""
    error, optimum = errors(delta, result)
    return error / optimum if optimum else math.inf


def errors(delta: torch.Tensor, result: LowRank) -> tuple[float, float]:
    """Frobenius error of the factors as stored, and of the exact SVD of the same rank."""
    scale = float(delta.abs().max())
    wide = delta.double() / scale
    product = (result.U.double() * (result.S / scale)) @ result.Vt.double()
    optimum = torch.linalg.svdvals(wide)[result.rank :].norm()
    return float((wide - product).norm()) * scale, float(optimum) * scale


def check_decomposition(
    delta: torch.Tensor, rank: int, result: LowRank, tolerance: float = 1e-3
) -> None:
    """Everything that a decomposition promises, against float64."""
    exact = torch.linalg.svdvals(delta.double())
    total = float(exact.square().sum())
    norm = math.sqrt(total)
    rank = min(rank, *delta.shape)
    assert result.rank == rank
    error, optimum = errors(delta, result)
    relative = optimum / norm
    assert error <= (1 + 1e-13) * result.bounds.largest_error()
    assert result.bounds.least_error() <= optimum
    if relative:
        assert error / optimum <= result.certificate()
    # float64's allowance, and factors stored in float32, cost a certificate of 1 + tolerance
    # only where the error is small
    arithmetic = 2.0**-39 + max(delta.shape) * 2.0**-51 * norm / optimum if relative else 0.0
    stored = 2 * torch.finfo(result.U.dtype).eps
    if relative > 1e-4:
        limit = 1 + tolerance + arithmetic + (stored / relative) ** 2
        assert result.certificate() <= limit
    assert error <= (1 + tolerance + arithmetic) * optimum + 2.0**-20 * norm
    # the error that it reports is the error that it makes
    assert result.squared_error() == pytest.approx(error**2, rel=2e-3, abs=2.0**-18 * total)
    assert result.S[:-1].ge(result.S[1:]).all()
    eye = torch.eye(rank, dtype=torch.float64)
    for vectors in (result.U.double(), result.Vt.double().T):
        significant = result.S.square() > 1e-10 * total
        gram = (vectors.T @ vectors - eye)[significant][:, significant]
        assert gram.numel() == 0 or float(gram.abs().max()) < 1e-4
    # the bounds behind the certificate hold one by one, but for its allowance
    slack = max(result.bounds.resolution, 1e-14) * total
    assert (exact[:rank].square() <= result.bounds.upper + slack).all()


def _one_value_over_a_tail(k: int, tail: float) -> torch.Tensor:
    spectrum = tail * torch.arange(1, k + 1).double() ** -0.2
    spectrum[0] = 1
    return spectrum
