"""Methods in the space of singular vectors, against their papers' formulas."""

from __future__ import annotations

import pytest
import torch
from method_inputs import paper_ties, relatives
from torch import Tensor

from regraft.merge.methods import merge_tensors

EPS = torch.finfo(torch.float32).eps


def delta_matrices(rows: int, columns: int, count: int = 3) -> tuple[Tensor, list[Tensor]]:
    base, inputs = relatives((rows, columns), count)
    return base.double(), [t.double() for t in inputs]


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_tsv_merge_is_the_papers_formula(shape: tuple[int, int]) -> None:
    base, inputs = delta_matrices(*shape)
    us, ss, vs = [], [], []
    for t in inputs:
        u, s, vt = torch.linalg.svd(t - base, full_matrices=False)
        us, ss, vs = [*us, u[:, :4]], [*ss, s[:4]], [*vs, vt[:4].T]
    polar = []
    for parts in (us, vs):
        p, _, qt = torch.linalg.svd(torch.cat(parts, 1), full_matrices=False)
        polar.append(p @ qt)
    expected = base + polar[0] @ torch.diag(torch.cat(ss)) @ polar[1].T
    result = merge_tensors("tsv_merge", inputs, base, dtype=torch.float64)
    torch.testing.assert_close(result, expected)


def test_tsv_merge_of_equal_low_rank_models_is_that_model() -> None:
    base = torch.randn(12, 20, dtype=torch.float64)
    model = base + torch.randn(12, 3, dtype=torch.float64) @ torch.randn(3, 20, dtype=torch.float64)
    result = merge_tensors("tsv_merge", [model] * 4, base, dtype=torch.float64)
    torch.testing.assert_close(result, model)


def test_low_rank_deltas_have_only_their_own_directions() -> None:
    """The null space of a delta, where rounding in float32 is all, is no direction of the task."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 60, generator=generator)
    exact = []
    for _ in range(2):
        b, a = (torch.randn(size, 3, generator=generator).double() for size in base.shape)
        exact.append(0.01 * b @ a.T)
    parts = [torch.linalg.svd(delta, full_matrices=False) for delta in exact]
    polar = []
    for vectors in ([u[:, :3] for u, _, _ in parts], [v[:3].T for _, _, v in parts]):
        p, _, qt = torch.linalg.svd(torch.cat(vectors, 1), full_matrices=False)
        polar.append(p @ qt)
    expected = polar[0] @ torch.diag(torch.cat([s[:3] for _, s, _ in parts])) @ polar[1].T
    inputs = [base + delta.float() for delta in exact]
    result = merge_tensors("tsv_merge", inputs, base) - base
    # each input and the result have an error of at most half a step of the base's entries
    assert float((result - expected).norm()) <= 2 * EPS * float(base.norm())
    level = float(torch.linalg.svdvals(exact[0] + exact[1])[:6].mean())
    spectrum = torch.linalg.svdvals(merge_tensors("iso_c", inputs, base) - base)
    torch.testing.assert_close(spectrum[:6], torch.full((6,), level), rtol=1e-3, atol=0)
    assert float(spectrum[6]) < 1e-3 * level


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_iso_c_levels_the_spectrum_of_the_sum(shape: tuple[int, int]) -> None:
    base, inputs = delta_matrices(*shape)
    u, s, vt = torch.linalg.svd(sum(inputs) - 3 * base, full_matrices=False)
    expected = base + 0.5 * s.mean() * u @ vt
    result = merge_tensors("iso_c", inputs, base, {"lambda": 0.5}, dtype=torch.float64)
    torch.testing.assert_close(result, expected)


def test_iso_c_adds_nothing_in_the_null_space_of_a_low_rank_sum() -> None:
    base = torch.zeros(12, 20)
    model = torch.randn(12, 2) @ torch.randn(2, 20)
    result = merge_tensors("iso_c", [model], base)
    spectrum = torch.linalg.svdvals(result)
    mean = torch.linalg.svdvals(model)[:2].mean()
    torch.testing.assert_close(spectrum[:2], mean.expand(2))
    assert float(spectrum[2]) < 1e-5


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_knots_ties_is_ties_in_the_joint_singular_basis(density: float) -> None:
    base, inputs = delta_matrices(8, 20)
    deltas = [t - base for t in inputs]
    u, s, vt = torch.linalg.svd(torch.cat(deltas, 1), full_matrices=False)
    parts = list((s[:, None] * vt).split(20, 1))
    params = {"density": density, "lambda": 0.7}
    result = merge_tensors("knots_ties", inputs, base, params, dtype=torch.float64)
    torch.testing.assert_close(result, base + 0.7 * u @ paper_ties(parts, density))
    turned = merge_tensors("knots_ties", [t.T for t in inputs], base.T, params, dtype=torch.float64)
    torch.testing.assert_close(turned, result.T)


def test_consensus_selects_entries_with_enough_votes() -> None:
    base, inputs = relatives((15, 11), 4)
    deltas = torch.stack([t - base for t in inputs])
    whole = deltas.sum(0)
    selected = (deltas.abs() >= 0.3 * (whole - deltas).abs()).sum(0)
    for least in (1, 2, 4, 9):
        params = {"tall_lambda": 0.3, "min_tasks": least, "lambda": 0.5}
        expected = base + 0.5 * whole * (selected >= min(least, 4))
        torch.testing.assert_close(merge_tensors("consensus_ta", inputs, base, params), expected)
