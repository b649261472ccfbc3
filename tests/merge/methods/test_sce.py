"""SCE with mergekit's floor and without."""

from __future__ import annotations

import torch

from regraft.merge.methods import merge_tensors


def test_sce_without_a_floor_weights_small_deltas_by_their_energy() -> None:
    base, inputs = torch.zeros(8, 8), [torch.full((8, 8), 1e-4), torch.full((8, 8), 3e-4)]
    alike = merge_tensors("sce", inputs, base)
    torch.testing.assert_close(alike, torch.full((8, 8), 2e-4))
    weighed = merge_tensors("sce", inputs, base, {"energy_floor": 0})
    torch.testing.assert_close(weighed, torch.full((8, 8), 1e-4 * (0.1 * 1 + 0.9 * 3)))
