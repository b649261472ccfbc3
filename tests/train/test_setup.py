"""Checks before the first step, each a sentence and also in the dry run; the dry run's plan."""

from __future__ import annotations

import json
import re

import pytest
from train_recipes import RECIPE, write_recipe
from typer.testing import CliRunner

from regraft import cli
from regraft.errors import InputError
from regraft.train.job import train_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("length: 256, steps: 5, batch: 2", "length: 4k, steps: 5, batch: 2", "fills half a row"),
        ("method: full", "method: full\nfreeze: [embbed]", "freeze: no tensor"),
        ("method: full", "method: lora\nlora: {{targets: q_prj}}", "no linear layers 'q_prj'"),
        ("warmup: 2", "warmup: 2}}\nparallel: {{context: 3", "3 processes (context 3)"),
        ("warmup: 2", "warmup: 2}}\noptimizer: {{name: adamw8bit", "say adamw"),
        ("rows: 2}}", "rows: 2, fused_rope: true}}", "for GPUs and this runs on cpu"),
        ("words: 256, documents: 30", "words: 120, documents: 30", "fills half a row"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_recipes_that_cannot_work_are_refused_before_the_run(
    old, new, words, dry_run, data_folder, tmp_path
):
    assert old in RECIPE
    recipe = write_recipe(tmp_path, data_folder, RECIPE.replace(old, new))
    with pytest.raises(InputError) as caught:
        train_model(recipe, tmp_path / "out", device="cpu", dry_run=dry_run)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


RECOVER = RECIPE.replace("method: full", "method: recover\nrecover: {{teacher: {model}}}").replace(
    "watch: {{every: 3, rows: 3}}\n", ""
)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RECIPE, r"watch: no document is held out, .* unless `separator`"),
        (RECIPE.replace("held_out: 0.1", "held_out: 0"), "data.held_out is 0; raise it"),
        (
            RECIPE.replace("rows: 3", "rows: 3, length: 64, needle: {{question: '" + "the " * 64
                           + "'}}"),
            "a needle and its question do not fit in 64 tokens",
        ),
        (RECOVER, "recover: of the short sources no document is held out"),
    ],
)  # fmt: skip
def test_the_dry_run_makes_the_checks_of_validation_and_recovery(
    text, words, dry_run, trained_model, data_folder, tmp_path
):
    """A text file is one document, so none is held out; the third recipe keeps its other source."""
    (tmp_path / "one.txt").write_text("the lantern paints the river . " * 200)
    if "needle" not in text:
        lines = [line for line in text.splitlines() if "synthetic" not in line]
        text = "\n".join(lines).replace(
            "jsonl: {short}, rows: packed", f"text: {tmp_path}/one.txt, rows: packed"
        )
        text = text.replace("mix: {{long: 2, short: 1}}", "mix: {{short: 1}}")
    recipe = write_recipe(tmp_path, data_folder, text + "\n", trained_model)
    with pytest.raises(InputError, match=words):
        train_model(recipe, tmp_path / "out", device="cpu", dry_run=dry_run)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_states_theta_memory_time_and_disk(data_folder, tmp_path):
    recipe = write_recipe(tmp_path, data_folder, RECIPE.replace("rope: {{law: scaling}}", ""))
    plan = train_model(recipe, tmp_path / "out", device="cpu", dry_run=True).plan
    assert "by the scaling law, the default" in plan["theta of stage 2"]
    assert "theta of stage 1" not in plan
    assert re.search(r"fits, \d+ MB each; .* a step, .* in all", plan["cost of stage 2"])
    assert re.search(r"\d kB, and up to .* while it runs", plan["disk"])


def test_dry_run_and_schema_write_nothing(data_folder, tmp_path):
    recipe = write_recipe(tmp_path, data_folder)
    done = CliRunner().invoke(cli.app, ["train", str(recipe), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)["plan"]
    assert "5 steps of 2 x 256 = 2,560 tokens at 0.001" in plan["stage 2"]
    schema = CliRunner().invoke(cli.app, ["train", "--schema"])
    assert json.loads(schema.stdout)["title"] == "regraft training recipe"
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_stage_that_ends_within_its_warm_up_warns(data_folder, tmp_path):
    text = RECIPE.replace("rate: 1e-3", "rate: 1e-3, schedule: {{warmup: 5}}")
    with pytest.warns(UserWarning, match="Stage 2 warms up for 5 steps and has 5"):
        train_model(
            write_recipe(tmp_path, data_folder, text), tmp_path / "out", device="cpu", dry_run=True
        )
