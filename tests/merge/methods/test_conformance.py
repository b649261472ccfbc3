"""Every native method against mergekit's, in memory, on float32 tensors without ties.

mergekit is called only for its results. Errors are relative to the merged delta.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.merge.methods import get, merge_tensors, names

oracle = pytest.importorskip("mergekit.merge_methods")

OURS_ONLY = {"knots_ties", "tsv_merge", "iso_c", "consensus_ta"}
WEIGHTS = ([1.0, 1.0, 1.0], [0.5, 0.3, 0.2], [1.0, 0.5, -0.2])
SHAPES = ((24, 36), (57,), (4, 6, 7))
SWITCH = (True, False)


def models(shape: tuple[int, ...], dtype: torch.dtype, count: int = 3) -> list[Tensor]:
    """The base and relatives of it whose deltas agree in part, as those of real models do."""
    generator = torch.Generator().manual_seed(7)
    base, common, *own = (
        torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count + 2)
    )
    return [base, *(base + 0.1 * (common + each) for each in own)]


def error(name: str, inputs: list[Tensor], base: Tensor | None, params: dict[str, Any]) -> float:
    """||ours - mergekit's|| / ||mergekit's - base||, with `base` as mergekit's first input."""
    group = inputs if base is None else [base, *inputs]
    theirs = oracle.merge_tensors(
        group, name, parameters=params, base_index=None if base is None else 0
    )
    dtype = inputs[0].dtype
    ours = merge_tensors(name, inputs, base, params, dtype=dtype, elements=200)
    origin = torch.zeros_like(theirs) if base is None else base
    return float((ours - theirs).norm() / (theirs - origin).norm().clamp_min(1e-30))


def grid(**axes: Any) -> list[dict[str, Any]]:
    """All combinations; `lambda_` stands for lambda."""
    keys = [key.rstrip("_") for key in axes]
    return [dict(zip(keys, values, strict=True)) for values in product(*axes.values())]


TASK = {"weight": WEIGHTS, "normalize": SWITCH, "lambda_": (1.0, 0.6)}
DENSITIES = (0.05, 0.3, 0.7, [0.2, 0.5, 0.9], 1.0)
GRIDS: dict[str, list[dict[str, Any]]] = {
    "task_arithmetic": grid(**TASK),
    "ties": grid(**TASK, density=DENSITIES, rescale=SWITCH),
    "breadcrumbs": grid(**TASK, density=DENSITIES[1:4], gamma=(0.0, 0.1, 0.5), rescale=SWITCH),
    "breadcrumbs_ties": grid(**TASK, density=DENSITIES[3:], gamma=(0.01, 0.1), rescale=SWITCH),
    # With nothing dropped the random ones are no longer random.
    "dare_linear": grid(**TASK, density=(1.0,), rescale=SWITCH),
    "dare_ties": grid(**TASK, density=(1.0,), rescale=SWITCH),
    "della": grid(**TASK, density=(1.0,)),
    "della_linear": grid(**TASK, density=(1.0,)),
    "sce": grid(select_topk=(1.0, 0.5, 0.1), int8_mask=SWITCH),
    "model_stock": grid(filter_wise=SWITCH),
    "multislerp": grid(weight=WEIGHTS, normalize_weights=SWITCH),
}


def test_every_native_method_that_mergekit_has_is_compared() -> None:
    compared = {*GRIDS, "linear", "karcher", "slerp", "nearswap", "nuslerp", "passthrough"}
    assert compared | OURS_ONLY == set(names())


@pytest.mark.parametrize("name", sorted(set(names()) - OURS_ONLY))
def test_parameters_and_defaults_are_mergekits(name: str) -> None:
    ours = get(name).parameters
    for theirs in oracle.get(name).spec.parameters:
        assert ours[theirs.name].required == theirs.required
        assert theirs.required or ours[theirs.name].default == theirs.default
        assert ours[theirs.name].per_input == (theirs.scope.value != "shared")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", GRIDS)
def test_methods_with_a_base_agree(name: str, shape: tuple[int, ...]) -> None:
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        base, *inputs = models(shape, dtype)
        for params in GRIDS[name]:
            assert error(name, inputs, base, params) <= bound, (dtype, params)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_methods_without_a_base_agree(shape: tuple[int, ...]) -> None:
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        base, *inputs = models(shape, dtype)
        for params in grid(weight=WEIGHTS, normalize=SWITCH):
            assert error("linear", inputs, None, params) <= bound, params
        for params in grid(weight=WEIGHTS, normalize_weights=SWITCH):
            assert error("multislerp", inputs, None, params) <= bound, params
        for params in grid(max_iter=(1, 10), tol=(1e-5, 1e-2)):
            assert error("karcher", inputs, None, params) <= bound, params
        for params in grid(scale=(None, 0.3, -2.0)):
            assert error("passthrough", [base], None, params) <= bound, params


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_methods_of_two_agree(shape: tuple[int, ...]) -> None:
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        base, a, b = models(shape, dtype, 2)
        far = torch.roll(a, 1, 0)
        for t in (0.0, 0.3, 1.0):
            for other in (a, far, -base):
                assert error("slerp", [other], base, {"t": t}) <= bound, t
            assert error("nearswap", [a], base, {"t": t * 0.1}) <= bound, t
        switches = {"nuslerp_flatten": SWITCH, "nuslerp_row_wise": SWITCH}
        for params in grid(weight=([1.0, 1.0], [0.7, 0.3], [1.0, -0.4], [1.0, -1.0]), **switches):
            for start in (base, None):
                assert error("nuslerp", [a, b], start, params) <= bound, (params, start is None)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_agree_in_density_norm_and_mean(name: str) -> None:
    base = torch.zeros(16, 64)
    delta = models((16, 64), torch.float32)[1]
    params = {"weight": [0.7], "density": 0.4, "normalize": False}
    torch.manual_seed(0)
    seeds = range(400)
    ours = torch.stack([merge_tensors(name, [delta], base, params, seed=seed) for seed in seeds])
    theirs = torch.stack(
        [oracle.merge_tensors([base, delta], name, parameters=params, base_index=0) for _ in seeds]
    )
    for mean in (lambda x: (x != 0).double().mean(), lambda x: x.norm(dim=(1, 2)).mean()):
        assert float(mean(ours)) == pytest.approx(float(mean(theirs)), rel=0.01)
    standard_error = theirs.std(0) / len(seeds) ** 0.5
    deviation = (ours.mean(0) - theirs.mean(0)) / standard_error
    assert float(deviation.square().mean()) < 3  # expected: 2
    by_size = delta.abs().argsort(1)  # how often the entry of each rank survives
    retained = [(x != 0).double().mean(0).gather(1, by_size).mean(0) for x in (ours, theirs)]
    assert float((retained[0] - retained[1]).abs().max()) < 0.04
