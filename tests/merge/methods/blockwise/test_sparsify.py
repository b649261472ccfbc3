"""Sparsification: exact trimming, rescaling, random and ranked draws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_inputs import SETTINGS, TASK, lattice, relatives
from torch import Tensor

from regraft.merge.methods import merge_tensors


@settings(max_examples=60)
@given(density=st.floats(0, 1), make=st.sampled_from([relatives, lattice]), seed=st.integers(0, 99))
def test_trimming_selects_exactly_the_largest_and_of_equals_the_first(
    density: float, make: Callable[..., tuple[Tensor, list[Tensor]]], seed: int
) -> None:
    base, (model,) = make((9, 14), 1, seed)
    delta = (model - base).flatten()
    result = merge_tensors("ties", [model], base, {"weight": 1.0, "density": density}, elements=30)
    count = max(1, int(density * delta.numel())) if density else 0
    order = delta.abs().sort(descending=True, stable=True).indices[:count]
    expected = torch.zeros_like(delta)
    expected[order] = delta[order]
    assert torch.equal(result, base + expected.view(base.shape))


@settings(max_examples=30)
@given(name=st.sampled_from([n for n in TASK if n != "task_arithmetic"]), seed=st.integers(0, 9))
def test_rescaling_restores_the_l1_norm(name: str, seed: int) -> None:
    base, (model,) = relatives((20, 30), 1, seed)
    params = {"weight": 1.0, "density": 0.4, "rescale": True, "normalize": False}
    result = merge_tensors(name, [model], base, params, elements=70, seed=seed, dtype=torch.float64)
    delta = model.double() - base.double()
    assert float((result - base).abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-12)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_follow_their_seed(name: str) -> None:
    base, inputs = relatives((40, 50))
    params = SETTINGS[name]
    results = [merge_tensors(name, inputs, base, params, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_dare_draws_at_its_density_and_independently_for_each_input(density: float) -> None:
    base = torch.zeros(200, 300)
    model = torch.ones(200, 300)
    params = {"weight": 1.0, "density": density, "rescale": False}
    retained = merge_tensors("dare_linear", [model], base, params)
    assert float(retained.mean()) == pytest.approx(density, abs=0.01)
    both = merge_tensors("dare_linear", [model, model], base, params)
    assert float((both == 2).float().mean()) == pytest.approx(density**2, abs=0.01)


def test_della_keeps_the_large_more_often() -> None:
    base = torch.zeros(2000, 50)
    model = torch.arange(1.0, 51).expand(2000, 50).contiguous()
    params = {"weight": 1.0, "density": 0.5, "epsilon": 0.3, "rescale": False}
    retained = (merge_tensors("della_linear", [model], base, params) != 0).double().mean(0)
    expected = torch.linspace(0.2, 0.8, 50, dtype=torch.float64)
    assert float((retained - expected).abs().max()) < 0.05


@pytest.mark.parametrize("shape", [(20, 30), (4, 30, 3), (50,)], ids=str)
def test_della_ranks_floats_as_it_ranks_doubles(shape: tuple[int, ...]) -> None:
    for make in (relatives, lattice):
        base, inputs = make(shape, 2, 0)
        params = SETTINGS["della"] | {"rescale": False}
        single, double = (
            merge_tensors("della", inputs, base, params, dtype=dtype) - base
            for dtype in (torch.float32, torch.float64)
        )
        assert torch.equal(single != 0, double.float() != 0)
