"""Jobs on small models: what they write, what they do again, what they refuse."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from graft_jobs import folders, recipe, runs
from models import LLAMA, contents, load, save, weights

from regraft import progress
from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.errors import InputError, LineageError, RegraftError
from regraft.graft.job import graft_model
from regraft.graft.stages.evaluation import Evaluate


def test_a_job_does_what_the_single_commands_do(models: Path, tmp_path: Path) -> None:
    record = graft_model(recipe(tmp_path, models, "scales: [0.5]"), tmp_path / "out")
    extract_lora(models / "base", models / "extended", tmp_path / "adapter", rank=4)
    apply_lora(tmp_path / "adapter", models / "derivative", tmp_path / "graft", scale=0.5)
    made, expected = load(tmp_path / "out/grafts/derivative"), load(tmp_path / "graft")
    assert all(made[name].equal(tensor) for name, tensor in expected.items())
    target = record.targets["derivative"]
    assert (target.rank, target.scale, target.result) == ("4", 0.5, "models/derivative")
    assert target.change is not None
    assert target.change.largest > 0


def test_a_finished_job_is_not_done_again(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = graft_model(recipe(tmp_path, models), out)
    before = runs(out)
    assert len(before) == 4
    assert graft_model(recipe(tmp_path, models), out) == first
    assert runs(out) == before


def test_a_changed_argument_is_done_again_with_what_depends_on_it(
    models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    graft_model(recipe(tmp_path, models, targets="derivative other"), out)
    before = runs(out)
    changed_recipe = recipe(tmp_path, models, "scales: [0.5]", targets="derivative other")
    with pytest.raises(InputError, match="another recipe: --resume runs again"):
        graft_model(changed_recipe, out)
    assert runs(out) == before
    graft_model(changed_recipe, out, resume=True)
    after = runs(out)
    again = {name for name in before if before[name] != after[name]}
    kinds = ("graft", "compare", "card")
    assert again == {f"{kind}@{name}" for kind in kinds for name in ("derivative", "other")}
    graft_model(changed_recipe, tmp_path / "fresh")
    assert folders(out) == folders(tmp_path / "fresh")


def test_a_changed_input_is_seen_and_a_touched_one_is_not(models: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(models, own)
    out = tmp_path / "out"
    graft_model(recipe(tmp_path, own), out)
    before = runs(out)
    os.utime(own / "derivative/model.safetensors")
    graft_model(recipe(tmp_path, own), out)
    assert runs(out) == before
    state = load(own / "derivative")
    state["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3  # no sampled weight
    save(own / "derivative", LLAMA, state)
    graft_model(recipe(tmp_path, own), out)
    after = runs(out)
    assert {name for name in before if before[name] != after[name]} == {
        "graft@derivative", "compare@derivative", "card@derivative"
    }  # fmt: skip


def test_a_damaged_output_is_made_again(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    graft_model(recipe(tmp_path, models), out)
    whole = contents(out / "grafts")
    (out / "grafts/derivative/config.json").unlink()
    graft_model(recipe(tmp_path, models), out)
    assert contents(out / "grafts") == whole
    (out / "grafts/derivative/config.json").write_text("mine")
    with pytest.raises(InputError, match="files that regraft did not write"):
        graft_model(recipe(tmp_path, models), out)


def test_a_dropped_target_leaves_nothing_behind(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    graft_model(recipe(tmp_path, models, targets="derivative other"), out)
    graft_model(recipe(tmp_path, models), out, resume=True)
    graft_model(recipe(tmp_path, models), tmp_path / "fresh")
    assert folders(out) == folders(tmp_path / "fresh")


def test_overwrite_does_everything_again(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    graft_model(recipe(tmp_path, models), out)
    before, files = runs(out), contents(out)
    graft_model(recipe(tmp_path, models), out, overwrite=True)
    after = runs(out)
    assert all(after[name] > before[name] for name in before)
    assert contents(out) == files


def test_until_and_from_choose_stages_by_name_or_kind(models: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "out", recipe(tmp_path, models, targets="derivative other")
    with pytest.raises(InputError, match="extract/rank-4 comes before it and is not finished"):
        graft_model(given, out, from_stage="graft")
    graft_model(given, out, until="extract")
    assert set(runs(out)) == {"extract@rank-4"}
    graft_model(given, out, until="graft/derivative")
    assert set(runs(out)) == {"extract@rank-4", "graft@derivative"}
    graft_model(given, out)
    before = runs(out)
    graft_model(given, out, from_stage="compare/derivative")
    after = runs(out)
    again = {name for name in before if before[name] != after[name]}
    first = {"compare@derivative", "card@derivative"}
    assert again == first | {"graft@other", "compare@other", "card@other"}
    with pytest.raises(InputError, match=r"grafd is no stage of this job .did you mean graft"):
        graft_model(given, out, until="grafd")


def test_a_dry_run_names_every_stage_and_writes_nothing(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = graft_model(recipe(tmp_path, models), out, dry_run=True)
    assert record.plan is not None
    assert list(record.plan) == [
        "extract/rank-4", "graft/derivative", "compare/derivative", "card/derivative"
    ]  # fmt: skip
    for words in ("read ", "write ", "peak memory", "time "):
        assert words in record.plan["extract/rank-4"]
    assert not out.exists()
    graft_model(recipe(tmp_path, models), out)
    record = graft_model(recipe(tmp_path, models), out, dry_run=True)
    assert record.plan is not None
    assert all(text.startswith("finished in") for text in record.plan.values())


def test_what_a_command_refuses_is_refused_before_the_first_stage(
    models: Path, tmp_path: Path
) -> None:
    save(tmp_path / "stranger", LLAMA, weights(LLAMA, seed=9))
    out = tmp_path / "out"
    given = recipe(tmp_path, models, targets=f"derivative {tmp_path / 'stranger'}")
    with pytest.raises(LineageError, match=r"graft/stranger: .* is no relative of"):
        graft_model(given, out)
    assert not (out / "adapters").exists()
    text = "evaluate: {suite: needle, haystack: nowhere}"
    with pytest.raises(InputError, match=r"^evaluate/derivative: haystack nowhere is neither"):
        graft_model(recipe(tmp_path, models, text), out)
    with pytest.raises(InputError, match="overlaps the input"):
        graft_model(recipe(tmp_path, models), models / "base" / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(InputError, match="holds no job of regraft graft"):
        graft_model(recipe(tmp_path, models), tmp_path / "mine", overwrite=True)


def test_a_target_that_fails_does_not_stop_the_others(models: Path, tmp_path: Path) -> None:
    state = load(models / "other")
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan  # no sampled weight
    save(tmp_path / "broken", LLAMA, state)
    out = tmp_path / "out"
    given = recipe(tmp_path, models, targets=f"{tmp_path / 'broken'} derivative")
    with pytest.raises(
        RegraftError, match=r"1 of 2 targets failed: broken .graft/broken"
    ) as caught:
        graft_model(given, out)
    assert caught.value.exit_code == 1
    targets = json.loads((out / "graft.json").read_text())["targets"]
    assert targets["derivative"]["result"] == "models/derivative"
    assert "up_proj" in targets["broken"]["failed"]
    assert str(caught.value).endswith(f" The others are in {out}.")
    alone = recipe(tmp_path, models, targets=str(tmp_path / "broken"))
    with pytest.raises(RegraftError, match=r"1 of 1 targets failed: broken .*\)\.$"):
        graft_model(alone, out, resume=True)
    assert not (out / "grafts/broken").exists()


def test_a_given_adapter_and_its_scale_are_applied(models: Path, tmp_path: Path) -> None:
    extract_lora(models / "base", models / "extended", tmp_path / "adapter", rank=4)
    path = tmp_path / "recipe.yaml"
    path.write_text(f"adapter: {tmp_path / 'adapter'}\ntargets: {models / 'derivative'}\n")
    graft_model(path, tmp_path / "out")
    apply_lora(tmp_path / "adapter", models / "derivative", tmp_path / "graft")
    made, expected = load(tmp_path / "out/grafts/derivative"), load(tmp_path / "graft")
    assert all(made[name].equal(tensor) for name, tensor in expected.items())


def test_a_target_is_merged_with_the_adapter(models: Path, tmp_path: Path) -> None:
    block = "{merge_method: task_arithmetic, parameters: {weight: 1.0}}"
    given = recipe(tmp_path, models, f"method: merge\nmerge: {block}")
    graft_model(given, tmp_path / "out")
    graft_model(recipe(tmp_path, models), tmp_path / "applied")
    merged = load(tmp_path / "out/grafts/derivative")
    applied = load(tmp_path / "applied/grafts/derivative")
    for name, tensor in applied.items():
        # base + (target - base) + delta, each rounded to float32
        assert torch.allclose(merged[name], tensor, atol=8 * torch.finfo(torch.float32).eps)


def test_a_warning_of_several_stages_is_given_once(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(stage: Evaluate) -> dict[str, str]:
        progress.warn("few items")
        return {}

    monkeypatch.setattr(Evaluate, "check", check)
    given = recipe(tmp_path, models, "evaluate: {items: 2}", targets="derivative other")
    with pytest.warns(UserWarning, match="few items") as warnings:
        record = graft_model(given, tmp_path / "out", dry_run=True)
    assert record.plan is not None
    assert {"evaluate/derivative", "evaluate/other"} <= record.plan.keys()
    assert len(warnings) == 1
