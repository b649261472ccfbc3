"""The joint core space of low-rank matrices, against direct computation in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regraft.lowrank.core_space import core_space

EPS = torch.finfo(torch.float64).eps


def factors(*ranks: int, m: int = 30, n: int = 40) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [(draw(m, rank), draw(rank, n)) for rank in ranks]


@pytest.mark.parametrize("ranks", [(3, 5, 2), (4,), (20, 25)])
def test_every_matrix_is_its_core_in_orthonormal_bases(ranks: tuple[int, ...]) -> None:
    pairs = factors(*ranks)
    space = core_space(pairs)
    assert space.left.shape == (30, min(30, sum(ranks)))
    assert space.right.shape == (40, min(40, sum(ranks)))
    for basis in (space.left, space.right):
        identity = torch.eye(basis.shape[1], dtype=torch.float64)
        torch.testing.assert_close(basis.T @ basis, identity, atol=1e3 * EPS, rtol=0)
    for (b, a), core in zip(pairs, space.cores, strict=True):
        result = space.left @ core @ space.right.T
        assert float((result - b @ a).norm()) <= 1e3 * EPS * float((b @ a).norm())


def test_the_bases_are_singular_vectors_of_the_balanced_factors() -> None:
    pairs = factors(3, 5)
    space = core_space(pairs)
    parts = [torch.linalg.svd(b @ a, full_matrices=False) for b, a in pairs]
    lefts = torch.cat(
        [u[:, :r] * s[:r].sqrt() for (u, s, _), r in zip(parts, (3, 5), strict=True)], 1
    )
    rights = torch.cat(
        [v[:r].T * s[:r].sqrt() for (_, s, v), r in zip(parts, (3, 5), strict=True)], 1
    )
    for basis, stacked in ((space.left, lefts), (space.right, rights)):
        expected = torch.linalg.svd(stacked, full_matrices=False).U
        torch.testing.assert_close(
            (basis.T @ expected).abs(), torch.eye(8).double(), atol=1e-9, rtol=0
        )


def test_cores_do_not_depend_on_how_a_matrix_is_split() -> None:
    pairs = factors(3, 5)
    mixing = torch.randn(3, 3, dtype=torch.float64)
    split = [(pairs[0][0] @ mixing, torch.linalg.solve(mixing, pairs[0][1])), pairs[1]]
    for one, other in zip(core_space(pairs).cores, core_space(split).cores, strict=True):
        torch.testing.assert_close(one.abs(), other.abs(), atol=1e-9, rtol=0)  # but for signs


def test_shared_directions_count_once_and_zeros_not_at_all() -> None:
    (b, a), (zero_b, zero_a) = factors(3, 2)
    space = core_space([(b, a), (2 * b, a), (0 * zero_b, zero_a)])
    assert [tuple(core.shape) for core in space.cores] == [(3, 3)] * 3
    torch.testing.assert_close(space.cores[1], 2 * space.cores[0])
    assert not space.cores[2].any()
    nothing = core_space([(0 * zero_b, zero_a)])
    assert [part.shape[1] for part in nothing.factors(nothing.cores[0], 1e-7)[:1]] == [0]


def test_factors_of_a_core_are_its_matrix() -> None:
    pairs = factors(3, 5)
    space = core_space(pairs)
    b, a, values = space.factors(space.cores[0] - space.cores[1], least=1e-7)
    expected = pairs[0][0] @ pairs[0][1] - pairs[1][0] @ pairs[1][1]
    assert b.shape[1] == 8
    torch.testing.assert_close(b @ a, expected, atol=1e4 * EPS, rtol=0)
    torch.testing.assert_close(values, torch.linalg.svdvals(expected)[:8])
