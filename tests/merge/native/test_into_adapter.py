"""Adapters as inputs, and adapters merged to an adapter."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import models
import pytest
import torch
from cards import assert_tables_are_whole
from extracted import merged_by_peft
from merge_zoo import CONFIG, EPS, entries, merge, refusal, write_recipe
from safetensors.torch import load_file

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.errors import OutputError
from regraft.merge.job import merge_models, summary
from regraft.merge.native import into_adapter
from regraft.units import format_bytes, parse_bytes

pytestmark = pytest.mark.usefixtures("in_zoo")


def test_adapters_merge_like_the_models_they_make(tmp_path: Path) -> None:
    for adapter, name in (("lora", "m1"), ("lora2", "m2")):
        apply_lora(adapter, "base", tmp_path / name, context="checkpoint")
    both = {"merge_method": "ties", "base_model": "base", "context": {"from": "base"}}
    weights = {"weight": 0.5, "density": 0.7}
    got = merge(tmp_path, {**both, "models": entries("lora", "base+lora2", **weights)})
    made = tmp_path / "made"
    made.mkdir()
    full = merge(
        made, {**both, "models": entries(str(tmp_path / "m1"), str(tmp_path / "m2"), **weights)}
    )
    base = models.load(Path("base"))
    for key, value in full.items():
        change = float((value - base[key]).norm())
        # an entry at the trim threshold may fall on either side of it
        assert float((got[key] - value).norm()) <= 0.02 * change + 1e-6, key


def test_as_adapter_is_exact_for_task_arithmetic_and_states_its_error_otherwise(
    tmp_path: Path,
) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base",
              "models": entries("lora", weight=0.7) + entries("base+lora2", weight=0.3),
              "context": {"from": "lora"}}  # fmt: skip
    got = merge(tmp_path, recipe)
    record = merge_models(write_recipe(tmp_path, recipe), tmp_path / "adapter", as_adapter=True)
    assert record.totals.error < 1e-6
    assert record.totals.rank_max <= 10
    apply_lora(tmp_path / "adapter", "base", tmp_path / "applied")
    applied, base = models.load(tmp_path / "applied"), models.load(Path("base"))
    for key, value in got.items():
        change = float((value - base[key]).norm())
        assert float((applied[key] - value).norm()) <= 1e-5 * change + 4 * EPS * value.norm()
    assert (tmp_path / "applied" / "config.json").read_text() == (
        tmp_path / "out" / "config.json"
    ).read_text()
    ties = {**recipe, "merge_method": "ties", "parameters": {"density": 0.5}}
    record = merge_models(write_recipe(tmp_path, ties), tmp_path / "ties", as_adapter=True)
    assert 0.05 < record.totals.error < 0.6
    assert summary(record)


def test_peft_applies_a_merged_adapter_as_apply_does(tmp_path: Path) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base",
              "models": entries("lora", weight=0.7) + entries("base+lora2", weight=0.3),
              "context": {"from": "lora"}}  # fmt: skip
    merge_models(write_recipe(tmp_path, recipe), tmp_path / "adapter", as_adapter=True)
    apply_lora(tmp_path / "adapter", "base", tmp_path / "applied")
    applied = models.load(tmp_path / "applied")
    peft = merged_by_peft(Path("base"), tmp_path / "adapter")
    for name, tensor in applied.items():  # B A of rank 10 is summed in another order
        torch.testing.assert_close(peft[name], tensor, rtol=8 * EPS, atol=8 * EPS)


def test_as_adapter_keeps_the_dtype_of_its_inputs(tmp_path: Path) -> None:
    for name, source, dtype in (("x", "long", "bfloat16"), ("y", "a", "bfloat16"),
                                ("z", "a", "float16")):  # fmt: skip
        extract_lora("base", source, tmp_path / name, rank=2, dtype=dtype, verify=False)
    x, y, z = (f"base+{tmp_path / name}" for name in "xyz")
    both = {"merge_method": "task_arithmetic", "base_model": "base", "context": {"from": "base"}}
    for number, (inputs, given, expected) in enumerate((
        ((x, y), {}, torch.bfloat16),
        ((x, z), {}, torch.float32),
        ((x, y), {"out_dtype": "float16"}, torch.float16),
    )):  # fmt: skip
        recipe = {**both, **given, "models": entries(*inputs, weight=0.5)}
        out = tmp_path / str(number)
        record = merge_models(write_recipe(tmp_path, recipe), out, as_adapter=True)
        state = load_file(out / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in state.values()} == {expected}
        assert record.totals.bytes == sum(tensor.nbytes for tensor in state.values())
        card = (out / "README.md").read_text()
        assert "| vLLM | with --max-lora-rank 8 |" in card
        # the sum has four directions; two factors, each rounded by half a step
        assert record.totals.error <= 2 * torch.finfo(expected).eps + 1e-6


def test_as_adapter_refuses_models(tmp_path: Path) -> None:
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": entries("a", weight=1),
    }
    assert "a is no adapter on base" in refusal(tmp_path, recipe, as_adapter=True)


def test_as_adapter_refuses_options_of_a_model(tmp_path: Path) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base",
              "models": entries("lora", weight=1), "context": {"from": "lora"}}  # fmt: skip
    sharded = refusal(tmp_path, recipe, as_adapter=True, max_shard_size="1GB")
    assert "--max-shard-size is for the shards of a model" in sharded
    assert "--verify is for" in refusal(tmp_path, recipe, as_adapter=True, verify=True)


def test_an_adapter_of_another_base_is_refused_without_an_option_that_merge_lacks(
    tmp_path: Path,
) -> None:
    models.save(tmp_path / "other", CONFIG, models.weights(CONFIG, seed=9))
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "other"),
              "models": entries("lora", weight=1), "context": {"from": "lora"}}  # fmt: skip
    message = refusal(tmp_path, recipe, as_adapter=True)
    assert "give a model made from that base." in message
    assert "--force" not in message


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_the_plan_of_a_merge_into_an_adapter_is_that_of_the_adapter(
    tmp_path: Path, method: str
) -> None:
    recipe = {"merge_method": method, "base_model": "base", "context": {"from": "lora"},
              "models": entries("lora", "lora2", weight=0.5)}  # fmt: skip
    path = write_recipe(tmp_path, recipe)
    plan = merge_models(path, tmp_path / "out", as_adapter=True, dry_run=True).plan
    record = merge_models(path, tmp_path / "out", as_adapter=True)
    assert plan["method"] == dict(summary(record))["method"]
    assert plan["modules"] == f"{record.totals.modules} of rank up to {record.totals.rank_max}"
    assert plan["writes"] == f"up to {format_bytes(record.totals.bytes)}"
    assert plan["peak memory"].startswith("about ")
    assert plan["seconds"] >= 0
    files = sum(
        Path(name, "adapter_model.safetensors").stat().st_size for name in ("lora", "lora2")
    )
    read = parse_bytes(plan["reads"].replace(" ", ""))
    dense = sum(
        tensor.nbytes for name, tensor in models.load(Path("base")).items() if "proj" in name
    )
    assert 0.5 * files < read - (dense if method == "ties" else 0) <= files
    assert {"config", "tokenizer"}.isdisjoint(plan)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_too_little_room_is_found_before_the_first_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the work has begun")

    recipe = {"merge_method": method, "base_model": "base", "context": {"from": "lora"},
              "models": entries("lora", "lora2", weight=0.5)}  # fmt: skip
    path = write_recipe(tmp_path, recipe)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=4, f_frsize=1000))
    monkeypatch.setattr(into_adapter, "merged" if method == "ties" else "_added", never)
    if method == "ties":
        with pytest.raises(OutputError, match=r"needs [\d.]+ kB, and 4 kB are free"):
            merge_models(path, tmp_path / "out", as_adapter=True)
        return
    with (
        pytest.warns(UserWarning, match=r"may need up to [\d.]+ kB, and 4 kB are free"),
        pytest.raises(AssertionError, match="the work has begun"),
    ):
        merge_models(path, tmp_path / "out", as_adapter=True)


def test_the_room_that_is_checked_holds_spool_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"merge_method": "ties", "base_model": "base", "context": {"from": "lora"},
              "out_dtype": "bfloat16", "models": entries("lora", "lora2", weight=0.5)}  # fmt: skip
    sizes: dict[str, int] = {}
    monkeypatch.setattr(into_adapter, "need_space", lambda _, own, at_most: sizes.update(own))
    record = merge_models(write_recipe(tmp_path, recipe), tmp_path / "out", as_adapter=True)
    assert sizes.pop("adapter_model.safetensors") == record.totals.bytes
    assert sum(sizes.values()) == 2 * record.totals.bytes  # in float32


def test_the_tables_of_the_card_are_whole(tmp_path: Path) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base",
              "models": entries("lora", weight=1), "context": {"from": "lora"}}  # fmt: skip
    merge_models(write_recipe(tmp_path, recipe), tmp_path / "out", as_adapter=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert_tables_are_whole(card)
    assert "| method | task_arithmetic, 1 adapter, in factors, exactly |" in card
