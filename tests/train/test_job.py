"""A training of a toy: its output folder; a killed run continues to the same digits."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_recipes import LORA, RECIPE, read_losses, write_recipe

from regraft.errors import InputError, RegraftError
from regraft.rope import scaling_law
from regraft.train import job, recipe_mesh
from regraft.train.job import train_model
from regraft.train.output import log as metrics
from regraft.train.recipe.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_leaves_a_model_its_record_and_its_metrics(trained_model):
    lines = metrics.read_lines(trained_model / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["stage"] for line in lines] == [1] * 5 + [2] * 5
    assert [line["length"] for line in lines] == [64] * 5 + [256] * 5
    assert lines[-1]["tokens"] == 5 * 4 * 64 + 5 * 2 * 256
    assert lines[4]["loss"] < lines[0]["loss"]
    theta = float(round(scaling_law(70, 64, 256)))
    config = json.loads((trained_model / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == theta
    assert config["max_position_embeddings"] == 256
    validations = metrics.read_lines(trained_model / "watch.jsonl")
    assert [(line["step"], line["length"]) for line in validations] == [
        (0, 64), (3, 64), (5, 64), (5, 256), (8, 256), (10, 256)
    ]  # fmt: skip
    assert (trained_model / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (trained_model / "tokenizer.json").is_file()
    record = json.loads((trained_model / "train.json").read_text())
    assert record["steps"] == 10
    assert record["stage_steps"] == [5, 5]
    card = (trained_model / "README.md").read_text()
    assert f"| 2 | 256 | {theta:.6g} | 5 | 2 | 0.001 |" in card
    assert "curves.png" in card
    hidden = [path.name for path in trained_model.iterdir() if path.name.startswith(("state", "."))]
    assert hidden == [".regraft-files.json"]


@pytest.fixture(scope="module")
def uninterrupted_run(tmp_path_factory, data_folder, children) -> tuple[Path, int]:
    """The same run by the command line, and its number of changes to the disk."""
    folder = tmp_path_factory.mktemp("uninterrupted_run")
    recipe, out = write_recipe(folder, data_folder), folder / "out"
    done = children.run("train", recipe, "-o", out, "--device", "cpu", "--threads", "1", "-q")
    assert done["code"] == 0, done["err"]
    return out, done["calls"]


def test_runs_killed_anywhere_resume_to_the_same_bytes(
    trained_model, uninterrupted_run, data_folder, tmp_path, children
):
    recipe = write_recipe(tmp_path, data_folder)
    line = ["train", recipe, "-o", tmp_path / "out", "--device", "cpu", "--threads", "1", "-q"]
    uninterrupted, calls = uninterrupted_run
    assert read_losses(uninterrupted) == read_losses(trained_model)
    for share in (0.35, 0.25, 0.15):
        died = children.run(*line, "--resume", die=int(share * calls))
        assert died["code"] == -9
    last = children.run(*line, "--resume")
    assert last["code"] == 0, last["err"]
    assert read_losses(tmp_path / "out") == read_losses(trained_model)
    ours, expected = (
        json.loads((folder / "train.json").read_text())["sources"]
        for folder in (tmp_path / "out", trained_model)
    )
    assert ours == expected
    same = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert same == (trained_model / "model.safetensors").read_bytes()


def test_a_full_disk_keeps_the_last_good_state(
    trained_model, uninterrupted_run, data_folder, tmp_path, children
):
    recipe = write_recipe(tmp_path, data_folder)
    line = ["train", recipe, "-o", tmp_path / "out", "--device", "cpu", "--threads", "1", "-q"]
    failed = children.run(*line, fail=uninterrupted_run[1] // 2)
    assert failed["code"] == 1
    assert "regraft: " in failed["err"]
    assert "Traceback" not in failed["err"]
    assert not (tmp_path / "out").exists()
    assert children.run(*line, "--resume")["code"] == 0
    assert read_losses(tmp_path / "out") == read_losses(trained_model)


def test_a_run_is_not_resumed_with_another_recipe(data_folder, tmp_path):
    recipe = write_recipe(tmp_path, data_folder, RECIPE.replace("rate: 1e-3", "rate: 1e30"))
    with pytest.raises(RegraftError, match="lower the rate"):
        train_model(recipe, tmp_path / "out", device="cpu")
    write_recipe(tmp_path, data_folder)
    with pytest.raises(InputError, match="had other inputs or arguments"):
        train_model(recipe, tmp_path / "out", device="cpu", resume=True)


def test_weights_that_are_not_finite_are_refused(trained_model, data_folder, tmp_path):
    from safetensors.torch import save_file

    model = tmp_path / "model"
    shutil.copytree(trained_model, model)
    state = load_file(model / "model.safetensors")
    state["model.norm.weight"][0] = math.nan
    save_file(state, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(RegraftError, match=r"'model.norm.weight' of .* holds NaN"):
        train_model(
            write_recipe(tmp_path, data_folder, LORA, model), tmp_path / "out", device="cpu"
        )


def test_a_deterministic_run_sets_torch_and_cublas_and_picks_the_kernel(
    trained_model, data_folder, tmp_path, monkeypatch
):
    """On a CPU the weights are those of any run; a GPU gets the one kernel that obeys."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    states = []

    def work(*arguments):
        states.append((torch.are_deterministic_algorithms_enabled(),
                       os.environ.get("CUBLAS_WORKSPACE_CONFIG")))  # fmt: skip
        return real(*arguments)

    real = job._work
    monkeypatch.setattr(job, "_work", work)
    recipe = write_recipe(tmp_path, data_folder, RECIPE + "deterministic: true\n")
    train_model(recipe, tmp_path / "out", device="cpu")
    assert states == [(True, ":4096:8")]
    assert not torch.are_deterministic_algorithms_enabled()
    assert read_losses(tmp_path / "out") == read_losses(trained_model)
    monkeypatch.setattr(recipe_mesh, "pick_device", torch.device)
    monkeypatch.setattr(recipe_mesh.Mesh, "create", lambda *_, kernel, **__: kernel)
    body = Recipe.read(recipe).body
    assert recipe_mesh.make_mesh(body, "cuda") == "flash"
    assert recipe_mesh.make_mesh(body, "cpu") == "auto"
    assert recipe_mesh.make_mesh(body.model_copy(update={"deterministic": False}), "cuda") == "auto"
