"""TIES by its three names, against direct formulas."""

from __future__ import annotations

import pytest
import torch
from method_inputs import paper_ties, relatives
from peft.utils.merge_utils import ties as peft_ties

from regraft.merge.methods import merge_tensors


@pytest.mark.parametrize("density", [0.05, 0.3, 0.8, 1.0])
def test_ties_of_the_paper(density: float) -> None:
    base, inputs = relatives((30, 20), 3)
    base, inputs = base.double(), [t.double() for t in inputs]
    params = {"weight": 1.0, "density": density, "variant": "paper", "lambda": 0.8}
    result = merge_tensors("ties", inputs, base, params, dtype=torch.float64)
    expected = base + 0.8 * paper_ties([t - base for t in inputs], density)
    assert float((result - expected).norm() / (expected - base).norm()) < 1e-14
    mergekit = merge_tensors("ties", inputs, base, params | {"variant": "mergekit"})
    assert float((result - mergekit).norm() / (expected - base).norm()) < 1e-6


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize("weight", [[1, 1, 1], [0.5, 0.3, 0.2], [1, 0.5, -0.2]])
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_ties_of_peft(weight: list[float], density: float) -> None:
    base, inputs = relatives((30, 20), 3)
    deltas = [t - base for t in inputs]
    params = {"weight": weight, "density": density, "variant": "peft"}
    result = merge_tensors("ties", inputs, base, params)
    expected = peft_ties(deltas, torch.tensor(weight), density)
    assert float((result - base - expected).norm() / expected.norm()) < 1e-5
    if weight != [1, 1, 1]:
        mergekit = merge_tensors("ties", inputs, base, params | {"variant": "mergekit"})
        assert float((mergekit - result).norm() / expected.norm()) > 0.3


def test_a_zero_vote_elects_plus_and_weights_that_cancel_divide_by_one() -> None:
    base = torch.zeros(1, 2)
    up, down = torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])
    for variant in ("mergekit", "peft", "paper"):
        params = {"weight": 1.0, "variant": variant}
        for inputs in ([up, down], [down, up]):
            assert merge_tensors("ties", inputs, base, params).tolist() == [[1.0, 1.0]]
            assert merge_tensors("sce", inputs, base).tolist() == [[1.0, 1.0]]
    # 0.3 + 0.4 - 0.7 is 6e-8 in float32; all three take part in the second entry
    inputs = [up, up, -up]
    cancelling = {"weight": [0.3, 0.4, -0.7], "normalize": True}
    for name in ("ties", "task_arithmetic"):
        result = merge_tensors(name, inputs, base, cancelling)
        torch.testing.assert_close(result, torch.tensor([[1.4, -1.4]]))


def test_an_entry_of_one_delta_has_full_size_when_normalized() -> None:
    base, (model,) = relatives((5, 5), 1)
    result = merge_tensors("ties", [model], base, {"weight": 0.25})
    torch.testing.assert_close(result, model)
    half = merge_tensors("ties", [model], base, {"weight": 0.25, "lambda": 0.5})
    torch.testing.assert_close(half, (model + base) / 2)
