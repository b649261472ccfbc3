"""Adapters merged to an adapter in their joint core space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from merge_zoo import EPS, entries, merge, refusal, write_recipe
from safetensors.torch import load_file
from torch import Tensor

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.lowrank.core_space import core_space
from regraft.merge.job import merge_models, summary
from regraft.merge.methods import merge_tensors


def dense_and_core(method: str, params: dict[str, Any], *ranks: int) -> tuple[Tensor, Tensor]:
    """The merge of random low-rank changes of a base of zeros, in float64."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    pairs = [(draw(40, rank), draw(rank, 50)) for rank in ranks]

    def merged(changes: list[Tensor]) -> Tensor:
        zero = torch.zeros_like(changes[0])
        return merge_tensors(method, changes, zero, params, dtype=torch.float64)

    space = core_space(pairs)
    return merged([b @ a for b, a in pairs]), space.left @ merged(space.cores) @ space.right.T


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("task_arithmetic", {"weight": [0.7, -0.2], "lambda": 1.5}),
        ("task_arithmetic", {"weight": [0.7, 0.3], "normalize": True}),
        ("iso_c", {"weight": [0.7, 0.3], "lambda": 0.5}),
        ("tsv_merge", {"weight": [0.7, 0.3]}),
    ],
)
def test_what_depends_on_no_basis_is_what_it_is_densely(
    method: str, params: dict[str, Any]
) -> None:
    dense, core = dense_and_core(method, params, 6, 6)
    # float64's rounding, times the condition of the two orthonormal bases of 12 directions
    assert float((dense - core).norm()) <= 1e-11 * float(dense.norm())


def test_ties_is_another_method_there() -> None:
    params = {"weight": [0.7, 0.3], "density": 0.5}
    dense, core = dense_and_core("ties", params, 6, 6)
    assert float((dense - core).norm()) > 0.1 * float(dense.norm())
    assert int((torch.linalg.svdvals(core) > 1e-9).sum()) <= 12


@pytest.mark.usefixtures("in_zoo")
@pytest.mark.parametrize("method", ["iso_c", "tsv_merge"])
def test_the_adapter_is_that_of_the_dense_merge(method: str, tmp_path: Path) -> None:
    for name, source in (("x", "long"), ("y", "a")):
        extract_lora("base", source, tmp_path / name, rank=4, dtype="float32", verify=False)
    inputs = [f"base+{tmp_path / name}" for name in "xy"]
    recipe = {"merge_method": method, "base_model": "base", "context": {"from": inputs[0]},
              "scale": 0.5, "models": entries(*inputs, weight=0.6)}  # fmt: skip
    dense = merge(tmp_path, recipe)
    path = write_recipe(tmp_path, {**recipe, "space": "core"})
    record = merge_models(path, tmp_path / "adapter", as_adapter=True)
    assert record.merge.space == "core"
    assert record.totals.rank_max <= 8
    assert record.totals.error < 1e-6  # the factors' float32
    assert ("method", f"{method}, 2 adapters, in the core space of their factors") in summary(
        record
    )
    apply_lora(tmp_path / "adapter", "base", tmp_path / "applied")
    applied, base = models.load(tmp_path / "applied"), models.load(Path("base"))
    for key, value in dense.items():
        change = float((value - base[key]).norm())
        # the dense merge subtracts W from W + B A in float32
        assert float((applied[key] - value).norm()) <= 1e-4 * change + 8 * EPS * value.norm()


@pytest.mark.usefixtures("in_zoo")
def test_ties_of_one_adapter_is_the_adapter(tmp_path: Path) -> None:
    recipe = {"merge_method": "ties", "base_model": "base", "context": {"from": "lora"},
              "space": "core", "models": entries("lora", weight=1.0)}  # fmt: skip
    merge_models(write_recipe(tmp_path, recipe), tmp_path / "adapter", as_adapter=True)
    one, other = (load_file(path / "adapter_model.safetensors")
                  for path in (Path("lora"), tmp_path / "adapter"))  # fmt: skip
    assert one.keys() == other.keys()
    for key in one:
        if key.endswith("lora_A.weight"):
            b = key.replace("lora_A", "lora_B")
            expected = one[b].double() @ one[key].double()
            error = float((other[b].double() @ other[key].double() - expected).norm())
            assert error <= 8 * EPS * float(expected.norm()) + 1e-7 * float(expected.norm())


@pytest.mark.usefixtures("in_zoo")
def test_a_module_that_only_the_second_adapter_changes_has_its_weight(tmp_path: Path) -> None:
    for name, modules in (("x", "q_proj"), ("y", "q_proj,v_proj")):
        extract_lora(
            "base", "a", tmp_path / name, rank=2, modules=modules, dtype="float32", verify=False
        )
    inputs = [f"base+{tmp_path / name}" for name in "xy"]
    models_ = [
        {"model": name, "parameters": {"weight": weight}}
        for name, weight in zip(inputs, (0.25, 1.0), strict=True)
    ]
    path = write_recipe(tmp_path, {"merge_method": "task_arithmetic", "base_model": "base",
                                   "models": models_, "space": "core"})  # fmt: skip
    merge_models(path, tmp_path / "adapter", as_adapter=True)
    own, merged = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("y", "adapter")
    )
    for a in (name for name in own if "v_proj.lora_A" in name):
        b = a.replace("lora_A", "lora_B")
        torch.testing.assert_close(merged[b] @ merged[a], own[b] @ own[a], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("in_zoo")
def test_what_has_no_core_space_is_refused_with_its_line(tmp_path: Path) -> None:
    recipe = {"merge_method": "ties", "base_model": "base", "context": {"from": "lora"},
              "space": "core", "models": entries("lora", "base+lora2", weight=1.0)}  # fmt: skip
    message = refusal(tmp_path, recipe)
    assert "line 5" in message
    assert "add --as-adapter" in message
    message = refusal(tmp_path, {**recipe, "merge_method": "dare_linear"}, as_adapter=True)
    assert "dare_linear does not merge in core space" in message
    message = refusal(tmp_path, {**recipe, "space": "cores"}, as_adapter=True)
    assert "space" in message
