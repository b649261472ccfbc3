"""The effective rank against its definition by all singular values."""

from __future__ import annotations

import pytest
import torch

from regraft.lowrank.effective_rank import LEADING, effective_rank, effective_rank_of_factors
from regraft.lowrank.svd import truncated_svd


def direct_effective_rank(matrix: torch.Tensor) -> float:
    values = torch.linalg.svdvals(matrix.double())
    return float(values.square().sum() ** 2 / values.pow(4).sum())


SPECTRA = {
    "flat": torch.ones(600),
    "slow decay": torch.arange(1, 601) ** -0.5,
    "fast decay": torch.exp(-torch.arange(600) / 30),
    "40 equal": (torch.arange(600) < 40).float(),
    "40 on a floor": (torch.arange(600) < 40).float() + 0.05,
    "one on a floor": torch.cat([torch.tensor([30.0]), torch.ones(599)]),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_estimated_effective_rank_is_within_ten_percent(name: str) -> None:
    values = SPECTRA[name].double()
    generator = torch.Generator().manual_seed(0)
    u, v = (
        torch.linalg.qr(torch.randn(size, 600, generator=generator, dtype=torch.float64))[0]
        for size in (700, 600)
    )
    matrix = ((u * values) @ v.T).float()
    exact = float(values.square().sum() ** 2 / values.pow(4).sum())
    svd = truncated_svd(matrix, LEADING, certify=False)
    estimate = effective_rank(matrix, svd.Vt, svd.squared_norm)
    assert estimate == pytest.approx(exact, rel=0.1)
    assert estimate == effective_rank(matrix, svd.Vt, svd.squared_norm)
    for scale in (2.0**-90, 2.0**90):  # squares beyond float32
        scaled = effective_rank(matrix * scale, svd.Vt, svd.squared_norm * scale**2)
        assert scaled == pytest.approx(estimate, rel=1e-5)


def test_effective_rank_of_factors_is_that_of_their_product() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(30, 5, generator=generator), torch.randn(5, 20, generator=generator)
    assert effective_rank_of_factors(b, a) == pytest.approx(direct_effective_rank(b @ a), rel=1e-5)
