"""Tall blocks of columns: norms, orthonormal bases, Gram matrices."""

from __future__ import annotations

import pytest
import torch

from regraft.lowrank import blocks, subspace
from regraft.lowrank.blocks import gaussian, gram, orthonormal, squared_frobenius
from regraft.lowrank.svd import truncated_svd


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


def test_gaussian_numbers_are_drawn_once_and_are_the_seeds():
    like = torch.empty(0, dtype=torch.float64)
    first = gaussian(30, 4, 5, like)
    assert gaussian(30, 4, 5, like) is first
    assert first.dtype == torch.float64
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(first.float(), torch.randn(30, 4, generator=generator))
    assert not torch.equal(gaussian(30, 4, 6, like), first)


def test_a_stream_that_reads_cached_numbers_keeps_their_memory(monkeypatch):
    class OnGpu:
        is_cuda, device, streams = True, "cuda:1", []

        def record_stream(self, stream):
            self.streams.append(stream)

    monkeypatch.setattr(blocks, "_gaussian", lambda *_: OnGpu())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    gaussian(30, 4, 5, torch.empty(0))
    assert OnGpu.streams == ["the stream of cuda:1"]


def test_a_decomposition_leaves_the_numbers_it_began_from(monkeypatch):
    drawn = []

    def recorded(*arguments):
        numbers = gaussian(*arguments)
        drawn.append((numbers, numbers.clone()))
        return numbers

    monkeypatch.setattr(subspace, "gaussian", recorded)
    delta = torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
    svd = truncated_svd(delta, 8)
    truncated_svd(delta, 8, start=svd.Vt.T)
    assert len(drawn) >= 2
    assert all(torch.equal(now, before) for now, before in drawn)
