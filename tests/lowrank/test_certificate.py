"""The certificate against the truth: error over optimum, over spectra, scales, threads, chips."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numerics
import pytest
import torch
from low_rank import SPECTRA, matrix, ratio_to_optimum
from numerics import SCALES, check_certificates, check_dominating_column

from regraft.lowrank import certificate, subspace
from regraft.lowrank.svd import truncated_svd

ROOT = Path(__file__).parents[2]


@pytest.fixture
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("half", [True, False])
def test_certificate_is_never_below_the_true_ratio(half, threads, restore_threads):
    torch.set_num_threads(threads)
    check_certificates(half, threads, step=1 if threads == 1 else 3)


@pytest.mark.parametrize("scale", [1e-37, *SCALES, 1e36])
def test_scale_changes_nothing(scale):
    """Squares of these numbers are beyond float32; at 1e-37 most are below its normal numbers."""
    delta = matrix(SPECTRA["power law 0.5"](288), 288, 300)
    unit, scaled = truncated_svd(delta, 16), truncated_svd(delta * scale, 16)
    assert ratio_to_optimum(delta * scale, scaled) <= scaled.certificate()
    assert scaled.method == unit.method == "subspace"
    assert scaled.certificate() == pytest.approx(unit.certificate(), abs=2e-5)
    assert scaled.error() == pytest.approx(unit.error(), rel=1e-5)
    torch.testing.assert_close(scaled.S, unit.S * scale, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tail", [1e-2, 1e-3, 1e-4, 1e-5])
def test_certificate_holds_where_one_value_holds_nearly_everything(tail: float) -> None:
    spectrum = tail * torch.arange(1, 401).double() ** -0.2
    spectrum[0] = 1
    delta = matrix(spectrum, 500, 400)
    result = truncated_svd(delta, 32)
    assert ratio_to_optimum(delta, result) <= result.certificate() <= 1.001


def test_the_certificate_holds_with_a_dominating_column() -> None:
    check_dominating_column()


def test_no_ratio_is_claimed_where_the_optimum_is_at_the_level_of_the_arithmetic():
    delta = matrix(torch.linspace(3, 2, 12).double(), 512, 300)
    result = truncated_svd(delta, 12)
    assert result.certificate() > 2  # stored factors have errors that the optimum has not
    assert result.bounds.least_error() <= ratio_scale(delta)
    assert result.bounds.largest_error() < 1e-6 * float(delta.norm())
    full = truncated_svd(matrix(torch.ones(30).double(), 40, 30), 30)
    assert full.certificate() == math.inf  # the optimum is 0
    assert 0 < full.bounds.largest_error() < 1e-6 * full.S.norm()


def ratio_scale(delta: torch.Tensor) -> float:
    """What rounding to float32 adds to a matrix of rank 12."""
    return float(torch.linalg.svdvals(delta.double())[12:].norm()) * (1 + 1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [20, 300])
def test_a_matrix_that_is_not_finite_is_refused_with_a_sentence(bad, size):
    delta = torch.ones(size, size)
    delta[3, 4] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        truncated_svd(delta, 4)


def test_coarse_products_widen_the_certificate(monkeypatch):
    """A processor that multiplies float32 with 8 bits gets a certificate that says so."""
    delta = matrix(SPECTRA["power law 0.5"](320), 400, 320)
    fine = truncated_svd(delta, 16, tolerance=0.1)
    product = subspace.SubspaceIteration._product
    monkeypatch.setattr(
        subspace.SubspaceIteration,
        "_product",
        lambda self, matrix, block: product(self, matrix, block).bfloat16().float(),
    )
    coarse = truncated_svd(delta, 16, tolerance=0.1)
    assert coarse.method == "subspace"
    assert fine.bounds.resolution < 2.0**-18 < 2.0**-11 < coarse.bounds.resolution
    assert ratio_to_optimum(delta, coarse) <= coarse.certificate()


def test_product_rounding_measures_what_was_added():
    generator = torch.Generator().manual_seed(0)
    d, x = torch.randn(128, 50, generator=generator), torch.randn(50, 7, generator=generator)
    d[0] = 0  # a row of zeros has no relative error
    noise = 1e-3 * torch.linalg.vector_norm(d, dim=1)[:, None] * torch.eye(7)[0]
    product = ((d.double() @ x.double() + noise) * 0.5).float()
    measured = certificate.product_rounding(d, x, product, 0.5)
    assert measured == pytest.approx(1e-3, rel=1e-3)
    assert certificate.product_rounding(torch.zeros(9, 50), x, torch.zeros(9, 7), 1.0) == 0.0


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_numerics_hold_under_other_instruction_sets(capability):
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, numerics.__file__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
