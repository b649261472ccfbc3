"""Muon: orthogonal momentum, decoupled weight decay."""

from __future__ import annotations

import pytest
import torch

from regraft.train.step.muon import Muon, orthogonal


def test_muon_makes_momentum_orthogonal_and_decays_weights():
    torch.manual_seed(0)
    for shape in ((8, 8), (16, 6), (6, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, dtype=torch.float64)))
        assert values.min() > 0.3
        assert values.max() < 1.3
    weight = torch.nn.Parameter(torch.ones(6, 16, dtype=torch.float64))
    muon = Muon([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.randn(6, 16, dtype=torch.float64)
    expected = 0.95 - 0.1 * orthogonal(weight.grad)
    muon.step()
    torch.testing.assert_close(weight.detach(), expected)
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.ones(3))])
