"""Contexts, scales and what storage means for a change: known or said before it is relied on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import torch

from regraft.adapters.apply.apply import apply_lora, summary
from regraft.adapters.apply.check import check_graft, merged_context
from regraft.adapters.extract.extract import extract_lora
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError, LineageError
from regraft.merge.job import merge_models
from regraft.rope import ContextSpec


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return models.family(tmp_path_factory.mktemp("family"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def adapter(family: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "a"
    extract_lora(*family[:2], folder, rank=4, verify=False)
    return folder


def trained_short(adapter: Path, folder: Path, **context: Any) -> Path:
    """The adapter as of a fine-tune on 64 tokens of a model with 256."""
    folder.mkdir()
    for name, data in models.contents(adapter).items():
        (folder / name).write_bytes(data)
    record = json.loads((folder / "regraft.json").read_text())
    short = {**record["context"]["base"], "max_position_embeddings": 64, **context}
    record["context"]["extended"] = short
    (folder / "regraft.json").write_text(json.dumps(record))
    return folder


def test_a_short_fine_tune_never_shortens_the_context(
    family: tuple[Path, Path, Path], adapter: Path, tmp_path: Path
) -> None:
    short = trained_short(adapter, tmp_path / "short")
    for target, length in ((family[2], 256), (family[0], 256)):
        with pytest.warns(UserWarning, match="--context adapter shortens it"):
            record = apply_lora(short, target, tmp_path / "x", dry_run=True)
        assert record.context.output.max_position_embeddings == length
        assert record.context.policy == "checkpoint"
    longer = models.save(
        tmp_path / "longer", {**models.LLAMA, "max_position_embeddings": 512},
        models.load(family[2]),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="keeps its context of 512"):
        record = apply_lora(short, longer, tmp_path / "x", dry_run=True)
    assert record.context.output.max_position_embeddings == 512
    record = apply_lora(short, family[2], tmp_path / "x", context="adapter", dry_run=True)
    assert record.context.output.max_position_embeddings == 64
    theta = apply_lora(short, family[2], tmp_path / "x", context="theta=5e4", dry_run=True)
    assert theta.context.output.max_position_embeddings == 256


def test_a_merge_with_an_adapter_of_a_short_fine_tune_keeps_the_context(
    family: tuple[Path, Path, Path], adapter: Path, tmp_path: Path
) -> None:
    short = trained_short(adapter, tmp_path / "short")
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {family[0]}\nmodels:\n"
        f"  - {{model: {family[0]}+{short}, parameters: {{weight: 1}}}}\n"
        f"  - {{model: {family[2]}, parameters: {{weight: 1}}}}\n"
    )
    merged = merge_models(recipe, tmp_path / "x", dry_run=True)
    assert merged.context.output.max_position_embeddings == 256


def test_a_shorter_context_with_another_rope_is_for_the_user_to_decide(
    family: tuple[Path, Path, Path], adapter: Path, tmp_path: Path
) -> None:
    rope = {"rope_type": "default", "rope_theta": 9000.0}
    short = trained_short(adapter, tmp_path / "short", rope_parameters=rope)
    with pytest.raises(LineageError, match="say which to use"):
        apply_lora(short, family[2], tmp_path / "x", dry_run=True)


def spec(length: int, theta: float = 1e4) -> ContextSpec:
    return ContextSpec({"rope_type": "default", "rope_theta": theta}, length)


@pytest.mark.parametrize(
    ("own", "before", "after", "expected"),
    [
        (spec(256), spec(256), spec(2048, 1e6), spec(2048, 1e6)),
        (spec(2048, 1e6), spec(256), spec(2048, 1e6), spec(2048, 1e6)),
        (spec(256), spec(256), spec(64), spec(256)),
        (spec(512), spec(256), spec(64), spec(512)),
        (spec(512), spec(256), spec(256), spec(512)),
        (spec(512, 9e3), spec(256), spec(256), spec(512, 9e3)),
        (spec(256), spec(256), spec(64, 1e6), None),
        (spec(512), spec(256), spec(2048, 1e6), None),
    ],
)
def test_the_context_of_a_model_with_an_adapter(
    own: ContextSpec, before: ContextSpec, after: ContextSpec, expected: ContextSpec | None
) -> None:
    assert merged_context(own, before, after) == expected


@pytest.mark.parametrize("scale", [50.0, 2.5, -1.0])
def test_a_scale_far_from_one_is_a_warning(
    scale: float, family: tuple[Path, Path, Path], adapter: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=rf"--scale {scale:g} makes the change {scale:g} times"):
        apply_lora(adapter, family[2], tmp_path / "x", scale=scale, dry_run=True)


def test_storage_is_measured_along_the_change(
    family: tuple[Path, Path, Path], adapter: Path, tmp_path: Path
) -> None:
    """Against float64: what of a small change reaches the file along its own direction."""
    record = apply_lora(adapter, family[2], tmp_path / "out", scale=0.02)
    assert record.totals is not None
    lora, before, after = (
        Adapter.open(adapter),
        models.load(family[2]),
        models.load(tmp_path / "out"),
    )
    along = squared = error = 0.0
    for name in lora.modules:
        b, a = lora.factors(name)
        change = 0.02 * (b.double() @ a.double())
        stored = after[name].double() - before[name].double()
        along += float((change * stored).sum())
        squared += float(change.square().sum())
        error += float((stored - change).square().sum())
    # float32 sums of 32-bit numbers on top of weights some hundred times the change
    assert record.totals.retained == pytest.approx(along / squared, rel=1e-3)
    assert record.totals.lost_to_storage == pytest.approx((error / squared) ** 0.5, rel=1e-3)
    assert record.totals.lost_to_storage > 0.5
    lines = dict(summary(record))
    assert f"{record.totals.retained:.1%} of the change reaches the file" in lines["storage"]


def test_float32_output_loses_nothing(
    family: tuple[Path, Path, Path], adapter: Path, tmp_path: Path
) -> None:
    record = apply_lora(adapter, family[2], tmp_path / "out", scale=0.02, dtype="float32")
    assert record.totals is not None
    assert record.totals.lost_to_storage < 1e-3
    state, old = models.load(tmp_path / "out"), models.load(family[2])
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    for name in state.keys() - Adapter.open(adapter).modules.keys():
        assert torch.equal(state[name], old[name].float())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "float32"
    assert "dtype" not in config or "torch_dtype" not in config
    plan = apply_lora(adapter, family[2], tmp_path / "x", dtype="float32", dry_run=True).plan
    assert plan is not None
    assert plan["write_bytes"] == 2 * plan["read_bytes"]
    with pytest.raises(InputError, match="--dtype 'int8' is not one of"):
        apply_lora(adapter, family[2], tmp_path / "x", dtype="int8")


def test_all_refusals_are_in_the_verdict(
    family: tuple[Path, Path, Path], adapter: Path, tmp_path: Path
) -> None:
    other = models.save(
        tmp_path / "other", {**models.LLAMA, "rope_theta": 7e3}, models.weights(models.LLAMA, 9)
    )
    with Checkpoint.open(other) as target:
        verdict = check_graft(Adapter.open(adapter), target)
    assert [refusal.kind for refusal in verdict.refusals] == ["context", "stranger"]
    with pytest.raises(LineageError, match="say which to use"):
        verdict.raise_refusals(force=True)
