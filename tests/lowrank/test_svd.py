"""The truncated SVD against LAPACK in float64, and its certificate against the truth."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from low_rank import SPECTRA, check_decomposition, matrix
from torch._subclasses.fake_tensor import FakeTensorMode

from regraft.lowrank import subspace, svd
from regraft.lowrank.low_rank import rounding_error
from regraft.lowrank.svd import truncated_svd


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(640, 320), (320, 640)])
def test_error_is_certified_and_within_a_thousandth_of_the_optimum(name, shape):
    delta = matrix(SPECTRA[name](320), *shape)
    result = truncated_svd(delta, 24)
    # where nothing can be told apart, LAPACK is asked
    assert result.method == "subspace" or name in ("flat", "repeated")
    check_decomposition(delta, 24, result)


@pytest.mark.parametrize("half", [True, False])
def test_the_bfloat16_path_keeps_the_promise_on_every_chip(half, monkeypatch):
    monkeypatch.setattr(subspace, "fast_bfloat16", lambda device: half)
    for name in ("power law 0.5", "steep", "repeated"):
        delta = matrix(SPECTRA[name](320), 400, 320, seed=3)
        result = truncated_svd(delta, 16, half=delta.bfloat16() if half else None)
        check_decomposition(delta, 16, result)


def test_exact_low_rank_under_noise_is_found():
    generator = torch.Generator().manual_seed(1)
    delta = matrix(torch.linspace(3, 2, 12).double(), 512, 300)
    delta += 1e-3 * torch.randn(512, 300, generator=generator)
    check_decomposition(delta, 12, truncated_svd(delta, 12))
    check_decomposition(delta, 20, truncated_svd(delta, 20))


def test_an_exactly_low_rank_matrix_leaves_nothing_but_rounding():
    delta = matrix(torch.linspace(3, 2, 12).double(), 512, 300)
    result = truncated_svd(delta, 12)
    assert result.method == "subspace"
    assert result.error() < 1e-6
    check_decomposition(delta, 12, result)


@settings(max_examples=40)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    rank=st.integers(1, 50),
    decay=st.floats(0, 3),
    scale=st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e30]),
    seed=st.integers(0, 99),
)
@example(m=1, n=1, rank=1, decay=0, scale=1.0, seed=0)
@example(m=1, n=40, rank=3, decay=0, scale=1.0, seed=0)
def test_small_matrices_are_decomposed_exactly(m, n, rank, decay, scale, seed):
    delta = matrix(scale * torch.arange(1, min(m, n) + 1).double() ** -decay, m, n, seed)
    result = truncated_svd(delta, rank)
    assert result.method == "lapack"
    check_decomposition(delta, rank, result, tolerance=0)


@settings(max_examples=12)
@given(
    m=st.integers(257, 420),
    n=st.integers(257, 420),
    rank=st.integers(1, 60),
    decay=st.floats(0, 3),
    floor=st.sampled_from([0.0, 1e-6, 1e-2]),
    scale=st.sampled_from([1e-30, 1e-12, 1.0, 1e9, 1e30]),
    seed=st.integers(0, 99),
)
@example(m=257, n=257, rank=2, decay=2.0, floor=0.0, scale=1e-9, seed=0)
def test_larger_matrices_keep_the_promise_whatever_their_spectrum(
    m, n, rank, decay, floor, scale, seed
):
    k = min(m, n)
    spectrum = (torch.arange(1, k + 1).double() ** -decay).clamp_min(floor)
    delta = matrix(scale * spectrum, m, n, seed)
    check_decomposition(delta, rank, truncated_svd(delta, rank, seed=seed))


def test_a_zero_matrix_and_rank_0_are_empty():
    zero = truncated_svd(torch.zeros(300, 400), 8)
    assert (zero.rank, zero.error(), zero.certificate()) == (0, 0.0, 1.0)
    none = truncated_svd(torch.ones(300, 400), 0)
    assert (none.rank, none.error()) == (0, 1.0)
    assert truncated_svd(torch.zeros(0, 7), 3).rank == 0
    b, a = zero.factors()
    assert b.shape == (300, 0)
    assert a.shape == (0, 400)


def test_what_is_no_matrix_is_a_programming_error():
    with pytest.raises(ValueError, match="takes a matrix"):
        truncated_svd(torch.zeros(3), 1)


def test_the_same_seed_gives_the_same_bits_and_another_seed_the_same_answer():
    delta = matrix(SPECTRA["power law 0.5"](320), 500, 320)
    one, again, other = (truncated_svd(delta, 16, seed=seed) for seed in (5, 5, 6))
    for field in ("U", "S", "Vt"):
        assert torch.equal(getattr(one, field), getattr(again, field))
    assert torch.equal(one.bounds.upper, again.bounds.upper)
    assert not torch.equal(one.U, other.U)
    assert other.error() == pytest.approx(one.error(), rel=1e-3)


@pytest.mark.parametrize("known", [4, 16, 48, 200])
def test_a_basis_to_begin_from_may_be_narrower_or_wider_than_the_block(known):
    delta = matrix(SPECTRA["power law 1"](320), 500, 320)
    start = torch.linalg.svd(delta)[2][:known].T
    check_decomposition(delta, 16, truncated_svd(delta, 16, start=start))


def test_without_certificate_nothing_is_claimed():
    delta = matrix(SPECTRA["power law 0.5"](320), 500, 320)
    result = truncated_svd(delta, 16, certify=False)
    assert result.certificate() == math.inf
    assert result.error() < 1.01 * truncated_svd(delta, 16, exact=True).error()


def test_exact_asks_lapack_for_any_size():
    delta = matrix(SPECTRA["flat"](300), 300, 600)
    result = truncated_svd(delta, 10, exact=True)
    assert result.method == "lapack"
    check_decomposition(delta, 10, result, tolerance=0)


def test_cutting_keeps_the_leading_part_and_its_certificate():
    delta = matrix(SPECTRA["power law 0.5"](320), 500, 320)
    result = truncated_svd(delta, 24)
    for rank in (0, 1, 10, 24):
        cut = result.truncated(rank)
        assert cut.squared_error() == pytest.approx(result.squared_error(rank))
        assert cut.certificate() == pytest.approx(result.certificate(rank))
        if rank:
            check_decomposition(delta, rank, cut)


def test_factors_multiply_to_the_approximation_and_are_balanced():
    delta = matrix(SPECTRA["exponential"](80), 90, 80)
    result = truncated_svd(delta, 7)
    b, a = result.factors()
    torch.testing.assert_close(b @ a, (result.U * result.S.float()) @ result.Vt)
    torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1))


def test_float64_matrices_are_worked_on_in_float64():
    delta = matrix(SPECTRA["power law 2"](320), 500, 320).double()
    result = truncated_svd(delta, 8)
    assert result.U.dtype == torch.float64
    check_decomposition(delta.float(), 8, result)


@settings(max_examples=25)
@given(
    m=st.integers(1, 30), n=st.integers(1, 30), r=st.integers(1, 8),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)  # fmt: skip
def test_rounding_error_equals_the_dense_one(m, n, r, dtype):
    generator = torch.Generator().manual_seed(m * n)
    b, a = torch.randn(m, r, generator=generator), torch.randn(r, n, generator=generator)
    b2, a2 = b.to(dtype), a.to(dtype)
    dense = b.double() @ a.double() - b2.double() @ a2.double()
    result = rounding_error((b, a), (b2, a2))
    assert result == pytest.approx(float(dense.square().sum()), rel=1e-5, abs=1e-18)


@pytest.mark.parametrize("size", [400, 700])
def test_bounds_hold_before_the_iteration_has_converged(size, monkeypatch):
    """A block that has seen little of the matrix: a certificate that forgets the outside lies."""
    monkeypatch.setattr(subspace, "_POWER_STEPS", 0)
    delta = torch.randn(size, size, generator=torch.Generator().manual_seed(2))
    exact = torch.linalg.svdvals(delta.double())[:16].square()
    for tolerance in (0.001, 0.01, 0.1):
        result = truncated_svd(delta, 16, tolerance=tolerance)
        assert (exact <= result.bounds.upper * (1 + 1e-6)).all()
        check_decomposition(delta, 16, result, tolerance)


def test_small_triangles_of_a_gpu_are_decomposed_on_the_host_by_one_thread(monkeypatch):
    """By shape alone. Those of the CPU keep all threads, and so their bits."""
    calls, real = [], torch.linalg.svd

    def record(r, full_matrices):
        calls.append((r.device.type, torch.get_num_threads() == 1))
        return real(r, full_matrices=full_matrices)

    monkeypatch.setattr(torch.linalg, "svd", record)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with FakeTensorMode():
            for device, size in (("cuda", 192), ("cuda", 512), ("cpu", 192)):
                r = torch.empty(size, size, dtype=torch.float64, device=device)
                assert {part.device.type for part in svd._svd_of_triangle(r)} == {device}
    finally:
        torch.set_num_threads(threads)
    assert calls == [("cpu", True), ("cuda", False), ("cpu", False)]
