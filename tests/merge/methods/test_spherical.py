"""Interpolation on the sphere and means, against exact arithmetic."""

from __future__ import annotations

import pytest
import torch
from method_inputs import SETTINGS, relatives

from regraft.merge.methods import get, merge_tensors


def test_three_equal_models_pass_through_multislerp() -> None:
    base, _ = relatives((4, 4))
    assert torch.equal(merge_tensors("multislerp", [base] * 3, base, {"weight": 1.0}), base)


@pytest.mark.parametrize("name", ["linear", "slerp", "nuslerp", "multislerp", "karcher"])
def test_means_of_similar_tensors_are_exact_up_to_one_rounding(name: str) -> None:
    base, _ = relatives((200, 200))
    inputs = [base + 1e-3 * torch.randn(200, 200) for _ in range(3)][: get(name).inputs[1]]
    params = {k: v for k, v in SETTINGS[name].items() if k != "weight"}
    if "weight" in get(name).parameters:
        params["weight"] = [0.5, 0.3, 0.2][: len(inputs)]
    start = base if name == "slerp" else None
    exact = merge_tensors(name, inputs, start, params, dtype=torch.float64)
    result = merge_tensors(name, inputs, start, params)
    rounding = float((exact.float() - exact).norm())
    assert float((result - exact).norm()) < 1.2 * rounding
    equal = merge_tensors(name, [base] * len(inputs), start, params)
    assert float((equal - base).abs().max()) < 1e-6


def test_karcher_finds_the_point_whose_tangents_cancel() -> None:
    inputs = [torch.randn(6, 7, dtype=torch.float64) for _ in range(4)]
    mean = merge_tensors("karcher", inputs, None, {"max_iter": 100}, dtype=torch.float64)
    mean = (mean / mean.norm()).flatten()
    tangent = torch.zeros_like(mean)
    for vector in inputs:
        unit = (vector / vector.norm()).flatten()
        cosine = unit @ mean
        theta = torch.arccos(cosine)
        tangent += theta / torch.sin(theta) * (unit - cosine * mean)
    assert float(tangent.norm()) < 1e-4
