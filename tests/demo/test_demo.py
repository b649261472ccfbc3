"""The demo: its recipe, and `regraft demo` as a job by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from printed import ROOT
from short_demo import write_short_recipe
from typer.testing import CliRunner

import regraft
from regraft import cli
from regraft.demo import job
from regraft.demo.job import RECIPE, demo_recipe
from regraft.errors import InputError
from regraft.graft.recipe import Recipe
from regraft.rope import scaling_law


def test_the_recipe_is_that_of_the_examples():
    assert RECIPE.read_text() == (ROOT / "examples" / "demo.yaml").read_text()
    assert demo_recipe().text == RECIPE.read_text()


def test_a_seed_is_that_of_every_training():
    body = Recipe(demo_recipe(seed=7)).body
    blocks = [body.base.train, body.extend, body.targets[0].train]
    assert [block["seed"] for block in blocks] == [7, 7, 7]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_training_takes_is_refused_as_the_option(seed: int, tmp_path: Path):
    with pytest.raises(InputError, match=f"--seed {seed} cannot be used"):
        regraft.run_demo(tmp_path / "out", seed=seed)


def test_theta_follows_from_the_scaling_law():
    body = Recipe(demo_recipe()).body
    trained = body.base.train["model"]["toy"]
    target = int(body.extend["stages"][-1]["length"].replace("k", "")) * 1024
    theta = round(scaling_law(trained["theta"], trained["length"], target))
    assert [stage["theta"] for stage in body.extend["stages"]] == [theta, theta]


def test_no_document_of_the_recipe_ends_where_a_row_does():
    body = Recipe(demo_recipe()).body
    for block in (body.base.train, body.extend, body.targets[0].train):
        words = {source["name"]: source["words"] for source in block["data"]["sources"]}
        for stage in block["stages"]:
            length = 1024 if stage["length"] == "1k" else stage["length"]
            # <s> and as many words: the row's last label is a word, not the end of the text
            assert all(words[name] > length for name in stage.get("mix", words))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, what it printed) of the demo with a few steps."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "RECIPE", write_short_recipe(folder / "demo.yaml"))
        done = CliRunner().invoke(cli.app, ["demo", "-o", str(folder / "out")])
        assert done.exit_code == 0, done.output
        yield folder, " ".join(done.output.split())


def test_the_demo_leaves_models_adapters_and_the_page(finished):
    folder, printed = finished
    assert "A fine-tune of the base, shouter" in printed
    assert "At 128 tokens the recipient scores" in printed
    assert "Of its own skill, shout, at 64 tokens: recipient" in printed
    assert f"page {folder}/out/index.html" in printed.replace(" /", "/").replace("page/", "page /")
    for name in ("trained/base", "trained/extended", "trained/shouter", "models/shouter"):
        assert (folder / "out" / name / "model.safetensors").is_file()
        assert (folder / "out" / name / "tokenizer.json").is_file()
    assert (folder / "out/adapters/rank-16/adapter_model.safetensors").is_file()
    assert "Long context grafted on shouter" in (folder / "out/index.html").read_text()


def test_a_second_run_continues_the_first_and_graft_continues_the_demo(finished):
    folder, _ = finished
    record = json.loads((folder / "out/graft.json").read_text())
    times = {path: path.stat().st_mtime_ns for path in folder.glob("out/*/*/*.safetensors")}
    again = CliRunner().invoke(cli.app, ["demo", "-o", str(folder / "out"), "--json"])
    assert json.loads(again.stdout) == record
    regraft.graft_model(folder / "demo.yaml", folder / "out", device="cpu")
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_dry_run_plans_the_stages_and_writes_nothing(finished, tmp_path: Path, monkeypatch):
    # to set the number of threads, even to the same, would give other bytes than regraft graft
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: pytest.fail("threads are set"))
    record = regraft.run_demo(tmp_path / "out", dry_run=True)
    assert record.plan is not None
    assert list(record.plan)[:3] == ["train/base", "extend", "extract/rank-16"]
    assert not (tmp_path / "out").exists()


def test_another_seed_is_another_job(finished):
    with pytest.raises(InputError, match="another recipe: --resume"):
        regraft.run_demo(finished[0] / "out", seed=3)


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        regraft.run_demo(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"
