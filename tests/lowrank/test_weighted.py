"""Low-rank approximation in the norm of a projection's inputs, against float64 formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from low_rank import SPECTRA, matrix

from regraft.lowrank import svd as svd_module
from regraft.lowrank.blocks import squared_frobenius
from regraft.lowrank.low_rank import LowRank
from regraft.lowrank.noise import Noise, denoised_squares, noise_floor
from regraft.lowrank.rank import RankRule, decompose
from regraft.lowrank.svd import truncated_svd
from regraft.lowrank.weighted import WeightedFactors, WeightedNorm, weighted_factors


def moment(n: int, *, decay: float = 1.0, tokens: int = 4096, seed: int = 7) -> torch.Tensor:
    """E[x x'] of inputs whose directions have variances i^-decay; singular for few tokens."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, n + 1).double() ** (-decay / 2)
    rotation = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    x = torch.randn(tokens, n, generator=generator, dtype=torch.float64) * spread @ rotation
    return x.T @ x / tokens


def extracted(
    delta: torch.Tensor, norm: WeightedNorm, rank: int, **options: object
) -> tuple[LowRank, WeightedFactors]:
    svd = truncated_svd(norm.product(delta), rank, **options)
    svd = norm.certified(svd, math.sqrt(squared_frobenius(delta)))
    return svd, weighted_factors(delta, svd.U)


def weighted(x: torch.Tensor, norm: WeightedNorm) -> float:
    return float((x.double() @ norm.root).norm())


def test_factors_are_the_whitened_svd():
    """B A = U_r S_r V_r' L^-1 of D L = U S V', for any root L: here the symmetric one."""
    delta, c = matrix(SPECTRA["power law 0.5"](40), 48, 40), moment(40)
    norm = WeightedNorm.from_moment(c.clone())
    damped = norm.root @ norm.root.T
    torch.testing.assert_close(
        damped, (c * (40 / c.trace()) + 0.01 * torch.eye(40).double()) / 1.01, atol=1e-12, rtol=0
    )
    values, vectors = torch.linalg.eigh(damped)
    root = (vectors * values.sqrt()) @ vectors.T
    u, s, vt = torch.linalg.svd(delta.double() @ root, full_matrices=False)
    expected = (u[:, :8] * s[:8]) @ vt[:8] @ torch.linalg.inv(root)
    svd, factors = extracted(delta, norm, 8)
    torch.testing.assert_close(factors.b @ factors.a, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(svd.S, s[:8], atol=1e-12, rtol=1e-10)
    # balanced, and each direction's part of the plain error
    torch.testing.assert_close(factors.b.norm(dim=0), factors.a.norm(dim=1))
    plain = (delta.double() - factors.b @ factors.a).square().sum()
    squared = delta.double().square().sum()
    torch.testing.assert_close(plain, squared - factors.squared_parts.sum())


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_weighted_error_is_never_above_that_of_the_plain_svd(decay, rank):
    delta, norm = matrix(SPECTRA["power law 0.5"](64), 96, 64), None
    norm = WeightedNorm.from_moment(moment(64, decay=decay))
    factors = extracted(delta, norm, rank)[1]
    plain = truncated_svd(delta, rank)
    b, a = plain.factors()
    ours, theirs = weighted(delta - factors.b @ factors.a, norm), weighted(delta - b @ a, norm)
    assert ours <= theirs * (1 + 1e-12)
    if decay:
        assert ours < 0.99 * theirs


@pytest.mark.parametrize(
    ("tokens", "damping"), [(4096, 0.01), (20, 0.01), (20, 1e-9)], ids=["full", "few", "singular"]
)
@pytest.mark.parametrize("lapack_below", [1, 256])
def test_certificate_holds_in_the_weighted_norm(tokens, damping, lapack_below, monkeypatch):
    monkeypatch.setattr(svd_module, "_EXACT_BELOW", lapack_below)
    n, rank, methods = 160, 8, set()
    norm = WeightedNorm.from_moment(moment(n, tokens=tokens), damping)
    for number, (name, spectrum) in enumerate(SPECTRA.items()):
        delta = matrix(spectrum(n) * 10.0 ** (9 * (number % 3) - 9), 176, n, seed=number)
        svd, factors = extracted(delta, norm, rank)
        methods.add(svd.method)
        total = math.sqrt(svd.squared_norm)
        optimum = float(torch.linalg.svdvals(delta.double() @ norm.root)[rank:].norm())
        error = weighted(delta.double() - factors.b @ factors.a, norm)
        assert error <= svd.bounds.largest_error() + 1e-13 * total, name
        assert svd.bounds.least_error() <= optimum + 1e-13 * total, name
        if optimum > 1e-6 * total:
            assert error / optimum <= svd.certificate() * (1 + 1e-9), name
    assert ("subspace" in methods) == (lapack_below == 1)


def test_a_perturbed_product_widens_both_bounds():
    bounds = truncated_svd(matrix(SPECTRA["power law 1"](64), 64, 64).double(), 4).bounds
    wider = replace(bounds, perturbation=1e-3)
    norm = math.sqrt(bounds.squared_norm)
    assert wider.largest_error() == pytest.approx(bounds.largest_error() + 1e-3 * norm)
    assert wider.least_error() == pytest.approx(bounds.least_error() - 1e-3 * norm)
    assert wider.certificate() > bounds.certificate()


def test_inputs_that_are_always_zero_give_the_plain_norm():
    norm = WeightedNorm.from_moment(torch.zeros(16, 16, dtype=torch.float64))
    assert torch.equal(norm.root, torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_what_is_no_second_moment_is_refused(value):
    c = torch.eye(8, dtype=torch.float64)
    c[3, 3] = value
    with pytest.raises(ValueError, match="second moment"):
        WeightedNorm.from_moment(c)


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_noise_alone_has_no_direction_above_the_weighted_edges(decay):
    """Each edge is exceeded with a probability of 0.1% at most."""
    norm = WeightedNorm.from_moment(moment(96, decay=decay))
    noise = 0.01 * torch.randn(128, 96, generator=torch.Generator().manual_seed(3))
    product = norm.product(noise)
    squared = float(product.square().sum())
    floor = noise_floor(
        torch.linalg.svdvals(product), squared, (128, 96), Noise(1e-4, 1e-4), norm.spectrum
    )
    assert floor.above == 0


def test_rules_count_the_weighted_energy_above_rounding():
    """Two directions, one of which no input has: auto finds the other, and energy counts it."""
    generator = torch.Generator().manual_seed(5)
    n = 64
    x = torch.randn(2048, n, generator=generator, dtype=torch.float64)
    x[:, 0] = 0  # an input that is always zero
    norm = WeightedNorm.from_moment(x.T @ x / 2048, 1e-6)
    delta = 1e-3 * torch.randn(n, n, generator=generator)
    noise = Noise(1e-6, 1e-6)
    delta[:32, 0] += 1.0
    delta[32:, 1] += 1.0
    product = norm.product(delta)
    squared = float(product.square().sum())
    for rule in (RankRule(), RankRule(energy=0.9)):
        svd, floor = decompose(product, rule, noise, squared_norm=squared, inputs=norm.spectrum)
        assert svd.rank == 1
        captured = float(denoised_squares(svd.S, floor, (n, n)).sum())
        assert captured == pytest.approx(32 * float(norm.root[1].square().sum()), rel=0.05)
    plain = decompose(delta, RankRule(), noise, squared_norm=float(delta.square().sum()))[0]
    assert plain.rank == 2


def test_bounds_hold_for_a_basis_that_is_not_orthonormal():
    """As U is after rounding: here off by 1%, so that U U'D is no projection of D."""
    delta = matrix(SPECTRA["power law 1"](48), 48, 48).double()
    norm = WeightedNorm.from_moment(moment(48))
    svd = truncated_svd(norm.product(delta), 6)
    skewed = replace(svd, U=1.01 * svd.U)
    u = skewed.U.double()
    error = weighted(delta - u @ (u.T @ delta), norm)
    certified = norm.certified(skewed, float(delta.norm()))
    assert error > svd.bounds.largest_error()
    assert error <= certified.bounds.largest_error()
