"""Jobs on small models: what they write, what they do again, what they refuse, what kills them."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from models import LLAMA, changed, contents, family, load, save, weights

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract import extract, factorize
from regraft.adapters.extract.extract import extract_lora
from regraft.errors import InputError, LineageError, RegraftError
from regraft.graft.job import graft_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, extended, derivative and `other`, a second derivative."""
    folder = tmp_path_factory.mktemp("models")
    family(folder)
    save(folder / "other", LLAMA, changed(weights(LLAMA), rank=None, size=0.03, seed=7))
    return folder


def recipe(folder: Path, models: Path, text: str = "", targets: str = "derivative") -> Path:
    """A recipe for the models, with more keys."""
    listed = ", ".join(str(models / name) for name in targets.split())
    path = folder / "recipe.yaml"
    keys = {"ranks": "[4]"}
    keys |= {key: value for key, _, value in (line.partition(": ") for line in text.splitlines())}
    lines = [f"{key}: {value}\n" for key, value in keys.items()]
    path.write_text(
        f"base: {models / 'base'}\nextended: {models / 'extended'}\ntargets: [{listed}]\n"
        + "".join(lines)
    )
    return path


def runs(out: Path) -> dict[str, int]:
    """When each stage was noted as finished."""
    return {p.stem: p.stat().st_mtime_ns for p in (out / ".regraft-graft").glob("*@*.json")}


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


def folders(out: Path) -> dict[str, bytes]:
    """Every file of a job, with its own folder's name taken out."""
    return {
        name: data.replace(str(out).encode(), b"OUT")
        for name, data in contents(out).items()
        if not name.endswith("/lock") and ".regraft-files" not in name
    }


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


def test_an_interrupted_stage_continues_where_it_was(models, tmp_path, monkeypatch) -> None:
    def stop(*_, **__):
        raise RuntimeError("stopped")

    decomposed = []

    def deltas(base, extended, modules, device):
        decomposed.extend(modules)
        return real(base, extended, modules, device)

    real = factorize.deltas
    monkeypatch.setattr(factorize, "deltas", deltas)
    monkeypatch.setattr(extract, "write_adapter", stop)  # when all modules are decomposed
    given, out = recipe(tmp_path, models), tmp_path / "out"
    with pytest.raises(RuntimeError, match="stopped"):
        graft_model(given, out)
    assert decomposed
    decomposed.clear()
    with pytest.raises(RuntimeError, match="stopped"):
        graft_model(given, out)
    assert not decomposed


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


def test_a_second_job_on_the_same_folder_is_refused(models, tmp_path, children) -> None:
    given, out, gate = recipe(tmp_path, models), tmp_path / "out", tmp_path / "gate"
    import threading

    first: list[dict] = []
    job = threading.Thread(
        target=lambda: first.append(
            children.run("graft", given, "-o", out, "--quiet", gate=(8, gate))
        )
    )
    job.start()
    while not Path(f"{gate}.reached").exists():
        assert job.is_alive()
        time.sleep(0.01)
    with pytest.raises(InputError, match="Another regraft process is writing"):
        graft_model(given, out)
    gate.touch()
    job.join()
    assert first[0]["code"] == 0, first[0]["err"]


def test_a_recipe_changed_in_the_middle_ends_as_if_it_had_always_been_so(
    models, tmp_path, children
) -> None:
    (tmp_path / "first").mkdir()
    first = recipe(tmp_path / "first", models, "ranks: [8]", targets="derivative other")
    second, out = recipe(tmp_path, models), tmp_path / "out"
    whole = children.run("graft", second, "-o", out, "--quiet")
    assert whole["code"] == 0, whole["err"]
    expected = contents(out)
    for moment in (60, 150):  # in the extraction, and after it
        shutil.rmtree(out)
        killed = children.run("graft", first, "-o", out, "--quiet", die=moment)
        assert killed["code"] == -9
        refused = children.run("graft", second, "-o", out, "--quiet")
        assert refused["code"] == 2
        assert "another recipe" in refused["err"]
        done = children.run("graft", second, "-o", out, "--quiet", "--resume")
        assert done["code"] == 0, done["err"]
        assert contents(out) == expected


def test_killed_anywhere_the_same_line_ends_with_the_same_bytes(models, tmp_path, children) -> None:
    (tmp_path / "work").mkdir()
    given = recipe(tmp_path, models, targets="derivative other")
    out = tmp_path / "out"
    whole = children.run("graft", given, "-o", out, "--quiet")
    assert whole["code"] == 0, whole["err"]
    expected = contents(out)
    rng = random.Random(0)
    for moment in sorted(rng.sample(range(1, whole["calls"] + 1), 2)):
        shutil.rmtree(out)
        killed = children.run("graft", given, "-o", out, "--quiet", die=moment)
        assert killed["code"] == -9, moment
        deaths = 0
        while True:  # again and again, a little later each time
            deaths += 1
            again = children.run(
                "graft", given, "-o", out, "--quiet", die=40 * deaths if deaths < 3 else None
            )
            if again["code"] == 0:
                break
            assert again["code"] == -9, again["err"]
        assert contents(out) == expected, moment
