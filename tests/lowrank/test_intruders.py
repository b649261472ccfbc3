"""Intruder directions against the SVD of LAPACK in float64."""

from __future__ import annotations

import pytest
import torch

from regraft.lowrank.intruders import AGAINST, DIRECTIONS, THRESHOLD, closest_cosines


def power_law(m: int, n: int) -> torch.Tensor:
    """A matrix with singular values 1, 2^-0.7, 3^-0.7, ..., well separated at the top."""
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(m, min(m, n), generator=generator))
    v, _ = torch.linalg.qr(torch.randn(n, min(m, n), generator=generator))
    return u * torch.arange(1, min(m, n) + 1).float() ** -0.7 @ v.T


def direct(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    u, v = (torch.linalg.svd(matrix.double(), full_matrices=False)[0] for matrix in (before, after))
    return (u[:, :AGAINST].T @ v[:, :DIRECTIONS]).abs().amax(0)


@pytest.mark.parametrize("shape", [(40, 300), (400, 320)])
def test_cosines_are_those_of_the_whole_decomposition(shape: tuple[int, int]) -> None:
    before = power_law(*shape)
    generator = torch.Generator().manual_seed(1)
    b, a = (torch.randn(size, 2, generator=generator) for size in shape)
    change = b @ a.T
    after = before + 0.6 * change / torch.linalg.matrix_norm(change, 2)
    cosines = closest_cosines(before, after)
    # subspace iteration: a vector is accurate to the square root of the energy's accuracy
    torch.testing.assert_close(
        torch.tensor(cosines).double(), direct(before, after), atol=0.01, rtol=0
    )


def test_a_new_direction_is_one_intruder() -> None:
    """A direction spread evenly over all singular vectors has a cosine of 1 / sqrt(300) with
    each."""
    before = torch.diag(torch.arange(1, 301).float() ** -0.7)
    even = torch.full((300,), 300**-0.5)
    cosines = closest_cosines(before, before + 3 * torch.outer(even, even))
    assert [cosine < THRESHOLD for cosine in cosines] == [True] + [False] * 9


def test_a_change_within_the_leading_directions_makes_no_intruder() -> None:
    before = power_law(60, 50)
    u, s, vt = torch.linalg.svd(before, full_matrices=False)
    after = u * (s * torch.linspace(1.3, 1, 50)) @ vt
    assert min(closest_cosines(before, after)) > 0.99


def test_a_matrix_of_zeros_has_no_directions() -> None:
    assert closest_cosines(torch.zeros(4, 6), torch.ones(4, 6)) == []
