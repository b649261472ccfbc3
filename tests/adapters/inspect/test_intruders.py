"""Intruder directions of checkpoints and of adapters on checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from inspected import dense, printed
from models import LLAMA, changed, load, save, weights
from refusals import refusal_of

from regraft.adapters.inspect.comparisons import CheckpointComparison, GraftInspection
from regraft.adapters.inspect.inspect import inspect_model
from regraft.errors import CheckpointError
from regraft.lowrank.intruders import AGAINST, DIRECTIONS, THRESHOLD


def count(before: torch.Tensor, after: torch.Tensor) -> int:
    """By the SVD of LAPACK in float64."""
    u, v = (torch.linalg.svd(matrix.double(), full_matrices=False)[0] for matrix in (before, after))
    cosines = (u[:, :AGAINST].T @ v[:, :DIRECTIONS]).abs().amax(0)
    return int((cosines < THRESHOLD).sum())


def test_two_checkpoints(tmp_path: Path) -> None:
    state = weights(LLAMA)
    large = changed(state, rank=2, size=0.5, seed=1, names="q_proj")
    one, two = save(tmp_path / "one", LLAMA, state), save(tmp_path / "two", LLAMA, large)
    result = inspect_model(str(one), str(two), intruders=True)
    assert isinstance(result, CheckpointComparison)
    assert result.intruders is not None
    assert len(result.intruders.modules) == 14
    for name, module in result.intruders.modules.items():
        assert module.intruders == (count(state[name], large[name]) if "q_proj" in name else 0)
    total = sum(module.intruders for module in result.intruders.modules.values())
    assert result.intruders.intruders == total == result.intruders.leaves["q_proj"].intruders > 0
    assert result.intruders.leaves["k_proj"].lowest_cosine is None  # unchanged
    text = " ".join(printed(result).split())
    assert f"{total} of the 10 leading singular vectors of each matrix" in text
    assert inspect_model(str(one), str(two)).intruders is None  # type: ignore[union-attr]  # two models give a pair


def test_an_adapter_on_its_base(folders: dict[str, Path]) -> None:
    result = inspect_model(str(folders["lora"]), str(folders["base"]), intruders=True)
    assert isinstance(result, GraftInspection)
    assert result.intruders is not None
    before, changes = load(folders["base"]), dense(folders["lora"])
    for name, module in result.intruders.modules.items():
        assert module.intruders == count(
            before[name].double(), before[name].double() + changes[name]
        )
    assert "Intruder directions" in printed(result)


def test_what_cannot_be_counted_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    lora = str(folders["lora"])
    assert "give OTHER" in refusal_of(inspect_model, lora, intruders=True)
    message = refusal_of(inspect_model, lora, str(folders["other"]), intruders=True)
    assert "give a model beside it" in message
    state = load(folders["base"])
    state["model.layers.0.self_attn.q_proj.weight"][40, 40] = torch.nan
    bad = save(tmp_path / "bad", LLAMA, state)
    with pytest.raises(CheckpointError, match=r"of .*bad holds NaN"):
        inspect_model(lora, str(bad), intruders=True)
