"""Which modules an adapter gets, and what becomes of vocabularies and heads."""

from __future__ import annotations

import json
import re

import models
import pytest
import torch
from extracted import State, everything_changed, merged_by_peft, save_pair
from safetensors.torch import load_file

from regraft.adapters.extract.extract import extract_lora
from regraft.adapters.serving import PORTABLE_CAP
from regraft.errors import InputError


def test_unchanged_modules_are_skipped_and_peft_makes_no_empty_factors_for_them(tmp_path):
    weights = models.weights(models.LLAMA)
    extended = models.changed(weights, rank=3, size=0.03, seed=1, names="layers.1.self_attn.q_proj")
    base, long = save_pair(tmp_path, models.LLAMA, weights, extended)
    record = extract_lora(base, long, tmp_path / "a", rank=3)
    assert list(record.modules) == ["model.layers.1.self_attn.q_proj"]
    assert len(record.extraction.unchanged) == 13
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert len(load_file(tmp_path / "a/adapter_model.safetensors")) == 2


@pytest.mark.parametrize(
    ("selector", "count"),
    [
        ("all-linear", 14),
        ("attention", 8),
        ("mlp", 6),
        ("q_proj", 2),
        ("q_proj, v_proj", 4),
        (r"model\.layers\.0\..*", 7),
        (r"model\.layers\.\d{1,2}\.mlp\.up_proj,k_proj", 4),
        ("all-linear,embed_tokens,lm_head", 16),
        ("q_proj,attention", 8),
    ],
)
def test_modules_are_chosen_by_group_name_or_regex(selector, count, family, tmp_path):
    plan = extract_lora(*family[:2], tmp_path / "a", rank=2, modules=selector, dry_run=True)
    assert plan.plan["modules"] == count


def test_a_part_of_the_modules_loads_in_peft(family, tmp_path):
    base, long, _ = family
    record = extract_lora(
        base, long, tmp_path / "a", rank=4, modules=r".*layers\.0.*q_proj,mlp", dtype="float32"
    )
    assert len(record.modules) == 7
    assert record.extraction.not_captured["projection"].changed == 7
    merged, expected, before = (
        merged_by_peft(base, tmp_path / "a"), models.load(long), models.load(base),
    )  # fmt: skip
    for name, tensor in merged.items():
        taken = name.removesuffix(".weight") in record.modules
        torch.testing.assert_close(tensor, (expected if taken else before)[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modules": "no_such"}, "--modules 'no_such' names no matrix"),
        ({"modules": "q_proj,"}, "--modules '' names no matrix"),
        ({"modules": "layers.(0"}, "is not a regular expression"),
        ({"dtype": "int8"}, "--dtype 'int8' is not one of"),
        ({"layout": "tiny"}, "--layout 'tiny' is not one of"),
        ({"rank": 0}, "--rank 0 is too small"),
        ({"rank": PORTABLE_CAP + 1}, "more than the 512"),
        ({"budget": "1kB"}, "--budget 1000 is less than"),
        ({"budget": "1kB", "layout": "compact"}, "--budget 1000 is less than"),
        ({"budget": "lots"}, "'lots' is not a size"),
        ({"energy": 2.0}, "is not a share"),
        ({"device": "tpu"}, "--device 'tpu' is not"),
        ({"device": "cuda:99"}, "sees no such GPU"),
    ],
)
def test_arguments_are_checked_before_any_work(arguments, message, family, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        extract_lora(*family[:2], tmp_path / "a", **arguments)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_the_embedding_of_a_tied_model_is_a_target_and_its_head_is_refused(tmp_path):
    weights, extended = everything_changed(models.TIED, rank=3)
    base, long = save_pair(tmp_path, models.TIED, weights, extended)
    with pytest.raises(InputError, match="--modules 'lm_head' names no matrix"):
        extract_lora(base, long, tmp_path / "a", modules="lm_head")
    extract_lora(
        base, long, tmp_path / "a", rank=3, modules="all-linear,embed_tokens", dtype="float32"
    )
    merged = merged_by_peft(base, tmp_path / "a")
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        torch.testing.assert_close(merged[name], extended[name], atol=1e-6, rtol=0)


def test_a_tied_head_that_is_stored_counts_once(tmp_path):
    weights, extended = everything_changed(models.TIED, rank=3)
    for state in (weights, extended):
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    base, long = save_pair(tmp_path, models.TIED, weights, extended)
    with pytest.raises(InputError, match="--modules 'lm_head' names no matrix"):
        extract_lora(base, long, tmp_path / "a", modules="lm_head")
    record = extract_lora(base, long, tmp_path / "a", rank=3, layout="exact")
    assert "lm_head.weight" not in record.differences
    assert "model.embed_tokens.weight" in record.differences


def test_a_head_that_only_one_model_has_is_said(tmp_path):
    weights, extended = everything_changed(models.TIED, rank=3)
    apart = {**models.TIED, "tie_word_embeddings": False, **models.LONG}
    base = models.save(tmp_path / "base", models.TIED, weights)
    head = extended["model.embed_tokens.weight"] + 0.1
    long = models.save(tmp_path / "long", apart, {**extended, "lm_head.weight": head})
    with pytest.warns(UserWarning, match="has a head of its own"):
        record = extract_lora(base, long, tmp_path / "a", rank=3)
    assert "has a head of its own" in record.extraction.notes[0]
    with pytest.warns(UserWarning, match="has a head of its own"):
        extract_lora(long, base, tmp_path / "b", rank=3, force=True)
    stored = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    models.save(base, models.TIED, stored)
    with pytest.raises(InputError, match=r"names the head of .* tied to the embedding"):
        extract_lora(base, long, tmp_path / "c", rank=3, modules="lm_head")


@pytest.mark.parametrize(("before", "after"), [(80, 88), (88, 80)])
def test_added_tokens_on_either_side_leave_the_shared_rows(before, after, tmp_path):
    wide = {**models.LLAMA, "vocab_size": 88}
    weights, extended = everything_changed(wide, rank=3)

    def cut(state: State, rows: int) -> State:
        return {k: (v[:rows].clone() if v.shape[0] == 88 else v) for k, v in state.items()}

    base = models.save(tmp_path / "b", {**wide, "vocab_size": before}, cut(weights, before))
    long = models.save(
        tmp_path / "e", {**wide, "vocab_size": after, **models.LONG}, cut(extended, after)
    )
    record = extract_lora(
        base, long, tmp_path / "a", rank=3, dtype="float32",
        modules="all-linear,embed_tokens,lm_head",
    )  # fmt: skip
    assert record.modules["lm_head"].shape == [80, 64]
    merged = merged_by_peft(base, tmp_path / "a")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(merged[name][:80], extended[name][:80], atol=1e-6, rtol=0)
        torch.testing.assert_close(merged[name][80:], weights[name][80:before])
    plain = extract_lora(base, long, tmp_path / "p", rank=3)
    assert plain.extraction.not_captured["head"].rows_not_shared == after - before
