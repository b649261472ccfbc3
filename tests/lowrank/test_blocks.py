"""Tall blocks of columns: norms, orthonormal bases, Gram matrices."""

from __future__ import annotations

import pytest
import torch

from regraft.lowrank.blocks import gram, orthonormal, squared_frobenius


def test_squared_norm_of_a_matrix_longer_than_a_block():
    assert squared_frobenius(torch.full((3000, 1000), 1e-3)) == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_squared_norm_beyond_the_squares_of_float32(scale):
    expected = 6 * float(torch.tensor(scale)) ** 2
    assert squared_frobenius(torch.full((2, 3), scale)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dependence", [1.0, 1e-3, 1e-7, 0.0])
def test_orthonormal_columns_whatever_their_dependence(dependence):
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(200, 8, generator=generator)
    block[:, 7] = block[:, 0] + dependence * block[:, 7]
    basis = orthonormal(block, strict=True)
    assert float((gram(basis) - torch.eye(8).double()).abs().max()) < 1e-5
    left = block - basis @ (basis.T @ block)
    assert float(left.norm()) < 1e-5 * float(block.norm())
