"""Properties that every merge method has."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_inputs import ALL, SHAPES, TASK, lattice, merged, relatives
from torch import Tensor

from regraft.merge.methods import get, merge_tensors


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "params"), ALL, ids=lambda x: x if isinstance(x, str) else "")
def test_shape_and_inputs_do_not_change(
    name: str, params: dict[str, Any], shape: tuple[int, ...]
) -> None:
    base, inputs = relatives(shape)
    before = [t.clone() for t in (base, *inputs)]
    for elements in (None, 10):
        result = merged(name, inputs, base, params, elements=elements)
        assert result.shape == base.shape
        assert bool(result.isfinite().all())
        assert all(torch.equal(x, y) for x, y in zip(before, (base, *inputs), strict=True))


@settings(max_examples=120)
@given(
    case=st.sampled_from(ALL),
    shape=st.sampled_from([(40, 17), (40, 3, 5), (129, 64), (2, 700), (3, 1)]),
    elements=st.integers(1, 2500),
    make=st.sampled_from([relatives, lattice]),
    seed=st.integers(0, 99),
)
def test_block_size_does_not_change_a_bit(
    case: tuple[str, dict[str, Any]],
    shape: tuple[int, ...],
    elements: int,
    make: Callable[..., tuple[Tensor, list[Tensor]]],
    seed: int,
) -> None:
    name, params = case
    base, inputs = make(shape, 2, seed)
    whole = merged(name, inputs, base, params, elements=None, seed=seed)
    assert torch.equal(merged(name, inputs, base, params, elements=elements, seed=seed), whole)


@pytest.mark.parametrize(("name", "params"), ALL, ids=lambda x: x if isinstance(x, str) else "")
def test_equal_inputs_of_weight_zero_delta_give_the_base(name: str, params: dict[str, Any]) -> None:
    if name == "passthrough":
        return
    for shape in SHAPES:
        base, _ = relatives(shape)
        result = merged(name, [base.clone(), base.clone()], base, params)
        assert float((result - base).abs().max()) <= 3e-7 * float(base.abs().max())


def test_threads_do_not_change_a_bit() -> None:
    base, inputs = relatives((3, 90_000))
    cases = [case for case in ALL if get(case[0]).blockwise]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append([merged(name, inputs, base, params) for name, params in cases])
    torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


@settings(max_examples=60)
@given(
    name=st.sampled_from([*TASK, "knots_ties", "tsv_merge", "iso_c", "consensus_ta"]),
    shape=st.sampled_from(SHAPES),
    share=st.sampled_from([0.3, 0.6, 1.0]),
)
def test_zero_weights_give_the_base(name: str, shape: tuple[int, ...], share: float) -> None:
    base, inputs = relatives(shape)
    params: dict[str, Any] = {"weight": 0.0}
    if "density" in get(name).parameters:
        params["density"] = share
    assert torch.equal(merge_tensors(name, inputs, base, params), base)
    params |= {"weight": 1.0, "lambda": 0.0}
    assert torch.equal(merge_tensors(name, inputs, base, params), base)


@settings(max_examples=60)
@given(
    name=st.sampled_from(
        [*TASK, "knots_ties", "tsv_merge", "consensus_ta", "sce", "linear", "multislerp", "karcher"]
    ),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 9),
)
def test_one_model_with_weight_one_gives_that_model(
    name: str, shape: tuple[int, ...], seed: int
) -> None:
    base, (model,) = relatives(shape, 1, seed)
    params = {"weight": 1.0} if "weight" in get(name).parameters else {}
    result = merge_tensors(name, [model], base, params)
    assert float((result - model).abs().max()) <= 2e-6 * float(model.abs().max())


@settings(max_examples=80)
@given(
    case=st.sampled_from([case for case in ALL if get(case[0]).symmetric]),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 9),
)
def test_order_of_inputs_does_not_matter_for_symmetric_methods(
    case: tuple[str, dict[str, Any]], shape: tuple[int, ...], seed: int
) -> None:
    name, params = case
    count = get(name).inputs[1] or 3
    base, inputs = relatives(shape, count, seed)
    values = {k: [*v, 0.9][:count] for k, v in params.items() if isinstance(v, list)}
    if params.get("variant") == "paper":
        values["weight"] = [1.0] * count
    first = merge_tensors(name, inputs, base, params | values)
    for order in permutations(range(count)):
        turned = {k: [v[i] for i in order] for k, v in values.items()}
        result = merge_tensors(name, [inputs[i] for i in order], base, params | turned)
        assert float((result - first).abs().max()) < 1e-5


@settings(max_examples=60)
@given(
    pair=st.sampled_from(
        [
            ("dare_linear", "task_arithmetic"),
            ("della_linear", "task_arithmetic"),
            ("breadcrumbs", "task_arithmetic"),
            ("dare_ties", "ties"),
            ("della", "ties"),
            ("breadcrumbs_ties", "ties"),
        ]
    ),
    weight=st.lists(st.sampled_from([1.0, 0.5, -0.2]), min_size=2, max_size=2),
    normalize=st.booleans(),
)
def test_density_one_is_the_dense_method(
    pair: tuple[str, str], weight: list[float], normalize: bool
) -> None:
    base, inputs = relatives((12, 10))
    params = {"weight": weight, "normalize": normalize, "density": 1.0}
    sparse, dense = (merge_tensors(name, inputs, base, params) for name in pair)
    assert torch.equal(sparse, dense)
