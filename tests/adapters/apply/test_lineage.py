"""Relatives and strangers, and targets that have the change already."""

from __future__ import annotations

import json

import models
import pytest
import torch
from applied import made_by_peft

from regraft.adapters.apply.apply import apply_lora
from regraft.errors import LineageError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's own, and ours where none is tested
]


def test_strangers_are_refused_with_figures_unless_forced(family, adapter, tmp_path):
    stranger = models.save(tmp_path / "s", models.LLAMA, models.weights(models.LLAMA, seed=9))
    with pytest.raises(LineageError, match=r"no relative of .*projection 14\d\.\d% away"):
        apply_lora(adapter, stranger, tmp_path / "out")
    assert apply_lora(adapter, stranger, tmp_path / "out", force=True).lineage.verdict == (
        "stranger"
    )


def test_a_target_that_has_the_change_is_refused(family, adapter, tmp_path):
    with pytest.raises(LineageError, match=r"already has (99|100|101)% of the change"):
        apply_lora(adapter, family[1], tmp_path / "x")
    apply_lora(adapter, family[2], tmp_path / "once")
    with pytest.raises(LineageError, match=r"already has 100% of the change"):
        apply_lora(adapter, tmp_path / "once", tmp_path / "twice")
    record = apply_lora(adapter, tmp_path / "once", tmp_path / "twice", force=True)
    assert record.already_present == pytest.approx(1, abs=0.02)
    fresh = apply_lora(adapter, family[2], tmp_path / "x", dry_run=True)
    assert fresh.already_present == pytest.approx(0, abs=0.05)


def test_a_target_trained_alike_in_the_old_context_is_a_warning(family, adapter, tmp_path):
    base, extended = models.load(family[0]), models.load(family[1])
    alike = {name: w + 2 * (extended[name] - w) for name, w in base.items()}
    target = models.save(tmp_path / "alike", models.LLAMA, alike)
    with pytest.warns(UserWarning, match="already has 200% of the change"):
        record = apply_lora(adapter, target, tmp_path / "out")
    assert record.already_present == pytest.approx(2, abs=0.02)


def test_the_base_that_a_plain_adapter_names_is_measured(family, tmp_path):
    made_by_peft(tmp_path / "a", family[0], target_modules=["q_proj"])
    record = apply_lora(tmp_path / "a", family[2], tmp_path / "out")
    assert record.lineage.verdict == "relative"
    assert record.base.name == str(family[0])
    with pytest.raises(LineageError, match="already has"):
        apply_lora(tmp_path / "a", tmp_path / "out", tmp_path / "twice")


def test_a_base_that_is_not_at_hand_is_a_warning(family, tmp_path):
    made_by_peft(tmp_path / "a", family[0], target_modules=["q_proj"])
    path = tmp_path / "a/adapter_config.json"
    for named in ("org/elsewhere", str(tmp_path), None):
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": named})
        )
        with pytest.warns(UserWarning, match="cannot be checked"):
            record = apply_lora(tmp_path / "a", family[2], tmp_path / "out", overwrite=True)
        assert record.lineage is None


def test_names_without_the_models_prefix_are_relatives_all_the_same(family, adapter, tmp_path):
    bare = {name.removeprefix("model."): w for name, w in models.load(family[2]).items()}
    target = models.save(tmp_path / "bare", models.LLAMA, bare)
    record = apply_lora(adapter, target, tmp_path / "out")
    assert record.lineage.verdict == "relative"
    assert record.already_present == pytest.approx(0, abs=0.05)
    apply_lora(adapter, family[2], tmp_path / "usual")
    result, usual = models.load(tmp_path / "out"), models.load(tmp_path / "usual")
    assert result.keys() == bare.keys()
    assert all(torch.equal(result[n.removeprefix("model.")], w) for n, w in usual.items())
