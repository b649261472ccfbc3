"""A guard: the change is scaled by how far each weight of the target moved from the guard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from applied import made_by_peft
from cards import assert_tables_are_whole
from refusals import refusal_of

from regraft.adapters.apply import stream
from regraft.adapters.apply.apply import apply_lora
from regraft.errors import CheckpointError, InputError, LineageError
from regraft.records import to_json

Q = "model.layers.0.self_attn.q_proj.weight"


def factors(weights: torch.Tensor, guard: torch.Tensor) -> torch.Tensor:
    """1 - sigmoid(12 m - 6) in float64, by the formula."""
    moved = (weights.double() - guard.double()).abs()
    share = (moved - moved.min()) / (moved.max() - moved.min())
    return 1 - torch.sigmoid(12 * share - 6)


def assert_guarded(
    result: dict[str, torch.Tensor],
    target: dict[str, torch.Tensor],
    guard: dict[str, torch.Tensor],
    change: dict[str, torch.Tensor],
) -> None:
    """Every tensor of `change` is target + factors * change, within float32's rounding."""
    for name, delta in change.items():
        rows = delta.shape[0]
        w = target[name][:rows].double()
        expected = w + factors(target[name][:rows], guard[name][:rows]) * delta.double()
        # float32 rounds the share m (12 times steeper in the exponent), the factor, D and the sum
        tolerance = 32 * torch.finfo(torch.float32).eps * float((w.abs() + delta.abs()).max())
        assert float((result[name][:rows].double() - expected).abs().max()) <= tolerance, name


@pytest.mark.filterwarnings("ignore:--scale -1")
@pytest.mark.parametrize(("scale", "block"), [(1.0, 1 << 20), (0.5, 64 * 7), (-1.0, 1 << 20)])
def test_the_change_is_scaled_by_the_formula(
    scale: float, block: int, whole_adapter: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    base, extended, lora = whole_adapter
    before, after = models.load(base), models.load(extended)
    moved = models.changed(before, rank=None, size=0.05, seed=2, names="")
    moved = {name: w + 0.01 * torch.randn(w.shape) for name, w in moved.items()}
    target = models.save(tmp_path / "t", models.LLAMA, moved)
    monkeypatch.setattr(stream, "_BLOCK", block)
    record = apply_lora(lora, target, tmp_path / "out", scale=scale, guard=base)
    change = {name: scale * (after[name] - w) for name, w in before.items()}
    result = models.load(tmp_path / "out")
    assert_guarded(result, moved, before, change)
    assert record.guard is not None
    assert record.guard.model.name == str(base)
    for name, tensor in record.tensors.items():
        by = factors(moved[name], before[name])
        assert tensor.guard_scale == pytest.approx(float(by.mean()), rel=1e-5)
        norm = float((by * change[name].double()).norm())
        assert tensor.change_norm == pytest.approx(norm, rel=1e-3)
    assert to_json(record) == json.loads((tmp_path / "out/regraft.json").read_text())
    card = (tmp_path / "out/README.md").read_text()
    assert f"Guard: {base}, sampled:" in card
    assert "| q_proj |" in card
    assert_tables_are_whole(card)
    assert re.search(r"\| projection \| \d+ \| \S+ \| \d+\.\d\d% \| \d+\.\d\d% \|", card)


def test_float64_follows_the_formula_to_float64(family: Any, adapter: Path, tmp_path: Path) -> None:
    base = models.load(family[0])
    target = models.save(tmp_path / "t", models.LLAMA, models.load(family[2]), dtype=torch.float64)
    moved = models.load(target)
    plain = apply_lora(adapter, target, tmp_path / "plain")
    apply_lora(adapter, target, tmp_path / "out", guard=family[0])
    whole, result = models.load(tmp_path / "plain"), models.load(tmp_path / "out")
    for name in plain.tensors:
        expected = moved[name] + factors(moved[name], base[name]) * (whole[name] - moved[name])
        torch.testing.assert_close(result[name], expected, atol=1e-12, rtol=0)


def test_weights_that_moved_alike_get_the_whole_change(
    family: Any, adapter: Path, tmp_path: Path
) -> None:
    """Without a range there is no m: the model itself as guard changes nothing, and says so."""
    apply_lora(adapter, family[2], tmp_path / "plain")
    with pytest.warns(UserWarning, match="have the same weights, so nothing is guarded"):
        record = apply_lora(adapter, family[2], tmp_path / "out", guard=family[2])
    assert record.totals is not None
    assert record.totals.guard_scale == 1.0
    plain, result = models.load(tmp_path / "plain"), models.load(tmp_path / "out")
    for name, tensor in plain.items():
        torch.testing.assert_close(result[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's own, and of the tied head
@pytest.mark.parametrize("stored", [False, True])
def test_a_tied_head_is_guarded_as_the_embedding(stored: bool, tmp_path: Path) -> None:
    before = models.weights(models.TIED)
    base = models.save(tmp_path / "base", models.TIED, before)
    merged = made_by_peft(tmp_path / "a", base, target_modules=["embed_tokens", "q_proj"])
    moved = models.changed(before, rank=None, size=0.05, seed=2, names="")
    moved["model.embed_tokens.weight"] = torch.cat(
        [moved["model.embed_tokens.weight"], torch.ones(3, 64)]
    )
    head = {"lm_head.weight": moved["model.embed_tokens.weight"].clone()} if stored else {}
    target = models.save(tmp_path / "t", {**models.TIED, "vocab_size": 83}, moved | head)
    apply_lora(tmp_path / "a", target, tmp_path / "out", guard=base)
    names = ("model.embed_tokens.weight", Q)
    change = {name: merged[name] - before[name] for name in names}
    result = models.load(tmp_path / "out")
    assert_guarded(result, moved, before, change)
    assert torch.equal(result[names[0]][80:], torch.ones(3, 64))
    if stored:
        assert torch.equal(result["lm_head.weight"], result[names[0]])


def test_a_guard_that_is_no_relative_is_refused(family: Any, adapter: Path, tmp_path: Path) -> None:
    other = models.save(tmp_path / "other", models.LLAMA, models.weights(models.LLAMA, seed=9))
    with pytest.raises(LineageError, match="is no relative of the guard"):
        apply_lora(adapter, family[2], tmp_path / "out", guard=other)
    assert not (tmp_path / "out").exists()
    assert apply_lora(adapter, family[2], tmp_path / "out", guard=other, force=True).guard


def test_a_guard_that_does_not_fit_is_refused_by_name(
    family: Any, adapter: Path, tmp_path: Path
) -> None:
    state = models.load(family[0])
    lacking = models.save(tmp_path / "lacking", models.LLAMA, state | {Q: state[Q][:32]})
    message = refusal_of(apply_lora, adapter, family[2], tmp_path / "out", guard=lacking)
    assert f"Tensor '{Q}' of the guard" in message
    del state[Q]
    lacking = models.save(tmp_path / "lacking", models.LLAMA, state)
    message = refusal_of(apply_lora, adapter, family[2], tmp_path / "out", guard=lacking)
    assert f"has no tensor '{Q}'" in message
    message = refusal_of(apply_lora, adapter, family[2], tmp_path / "out", guard=tmp_path / "no")
    assert "no" in message
    assert not list(tmp_path.glob(".out*"))


def test_a_guard_without_a_name_is_refused(family: Any, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--guard is empty"):
        apply_lora(adapter, family[2], tmp_path / "out", guard="")


def test_nan_of_the_guard_is_named(family: Any, adapter: Path, tmp_path: Path) -> None:
    state = models.load(family[0])
    state[Q][40, 40] = torch.nan
    guard = models.save(tmp_path / "guard", models.LLAMA, state)
    with pytest.raises(CheckpointError, match=r"of .*guard holds NaN"):
        apply_lora(adapter, family[2], tmp_path / "out", guard=guard)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's own
def test_replaced_tensors_have_no_guard(family: Any, tmp_path: Path) -> None:
    made_by_peft(tmp_path / "a", family[0], target_modules=["q_proj"], modules_to_save=["lm_head"])
    message = refusal_of(apply_lora, tmp_path / "a", family[2], tmp_path / "out", guard=family[0])
    assert "--guard cannot scale" in message
