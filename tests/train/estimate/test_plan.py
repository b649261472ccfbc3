"""`regraft plan` and the decisions that follow from its estimates."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import models
import pytest
import torch
from llama_shapes import LLAMA_8B, llama
from typer.testing import CliRunner

from regraft import cli
from regraft.data.toy_language import WORDS
from regraft.parallel import Mesh
from regraft.train.estimate import budget, machine, plan, plan_text
from regraft.train.estimate.budget import Shape
from regraft.train.estimate.machine import GIB, parse_machine
from regraft.train.estimate.step_time import step_flops
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.schema import Body, trains_everything


@pytest.mark.parametrize("method", ["lora", "full", "recover"])
def test_full_and_recover_train_everything_and_lora_does_not(method):
    body = Body(
        model="m", method=method,
        stages=[{"length": 64, "steps": 1}], data={"sources": [{"name": "a", "text": "a"}]},
    )  # fmt: skip
    assert trains_everything(body) == (method != "lora")


def test_without_a_gpu_the_plan_is_for_this_cpu_and_its_measured_rate(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(machine, "cpu_rate", lambda rows, columns: 1e9)
    monkeypatch.setattr(machine, "available_memory", lambda: 2e9)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "model: {toy: {hidden: 128}}\nstages: [{length: 1k, steps: 10, batch: 4}]\n"
        "data: {sources: [{name: a, synthetic: notes}]}\n"
    )
    result = plan.plan_training(recipe)
    assert "this CPU" in result.machine.name
    (stage,) = result.stages
    shape = Shape(result.model.parameters, 0, 128, 2, 192, len(WORDS), 64, 4, 32)
    flops = 4 * step_flops(shape, 1024, full=True, checkpoint=True).total
    assert stage.step_seconds == pytest.approx(flops / result.machine.assumed_rate)
    assert result.machine.assumed_rate < 1e9
    assert stage.fits
    assert 0.8 * GIB < stage.device_bytes < 2e9
    monkeypatch.setattr(machine, "available_memory", lambda: 1e8)
    assert not plan.plan_training(recipe).stages[0].fits
    lines = dict(plan_text.lines(result))
    assert "estimates" in lines[""]
    assert re.search(r"about [\d.]+ s a step", lines["stage 1"])


def test_the_help_says_what_is_planned_for_without_a_gpu():
    text = CliRunner().invoke(cli.app, ["plan", "--help"], env={"COLUMNS": "200"}).stdout
    assert "this machine's GPUs, else its CPU" in text


def test_the_plan_of_a_recovery_counts_every_parameter(tmp_path):
    folder = models.save(tmp_path / "model", models.LLAMA, models.weights(models.LLAMA))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {folder}\nmethod: recover\nstages: [{{length: 128, steps: 3}}]\n"
        "data: {sources: [{name: a, text: nowhere}]}\n"
    )
    model = plan.plan_training(recipe, gpus="H100").model
    assert model.trained == model.parameters > 0


def test_the_command_says_what_fits_and_what_would_help(tmp_path):
    config = {**models.LLAMA, "num_hidden_layers": 2}
    folder = models.save(tmp_path / "model", config, models.weights(config))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {folder}\nmethod: lora\nlora: {{norms: false}}\nstages:\n"
        "  - {length: 64k, steps: 3, batch: 8}\n"
        "data: {sources: [{name: a, text: nowhere}]}\n"
    )
    line = ["plan", str(recipe), "--gpus", "8xH100-80", "--host-memory", "1TB"]
    done = CliRunner().invoke(cli.app, [*line, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["stages"][0]["fits"]
    assert result["context_devices"] == 8
    rank, shapes = 64, [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
    assert result["model"]["trained"] == 2 * rank * sum(map(sum, shapes))
    assert "offload and tiled_mlp" in result["longest"]
    assert "fits" in CliRunner().invoke(cli.app, line).stdout


def test_examples_can_be_planned_by_their_shape():
    examples = Path(__file__).parents[3] / "examples"
    gradient = Recipe.read(examples / "train-gradient-1048k.yaml").body
    gpus = parse_machine("8xH200", None)
    most = budget.longest(LLAMA_8B, plan.switches_of(gradient, gpus), gpus)
    assert 2**20 < most < 2**23


def recipe_of(tmp_path, memory):
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {toy: {hidden: 128}}\nmethod: lora\ndtype: bfloat16\n"
        "stages: [{length: 1k, steps: 1}, {length: 8k, steps: 1}]\n"
        f"data: {{sources: [{{name: a, synthetic: notes}}]}}\nmemory: {{{memory}}}\n"
    )
    return Recipe.read(path)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ("", [True, False]), ("keep_attention: true", [True, True]),
        ("keep_attention: false", [False, False]), ("checkpoint: false", [False, False]),
    ],
)  # fmt: skip
def test_attention_is_kept_where_a_tenth_of_the_memory_stays_free(tmp_path, memory, expected):
    recipe, shape = recipe_of(tmp_path, memory), llama(32, False)
    gpu = parse_machine("H100", None)
    switches = plan.switches_of(recipe.body, gpu)
    full = budget.memory(shape, replace(switches, keep_attention=True), 1024, 1, 1)[0]
    gpu = replace(gpu, memory=full / 0.899)
    stages = [
        plan.estimate_stage(recipe, stage, shape, switches, gpu, 1) for stage in recipe.body.stages
    ]
    assert [stage.keep_attention for stage in stages] == expected
    assert ["attention kept" in plan_text.describe(stage) for stage in stages] == expected
    if not memory:
        on_cpu = replace(gpu, is_cpu=True)
        stage = plan.estimate_stage(recipe, recipe.body.stages[0], shape, switches, on_cpu, 1)
        assert not stage.keep_attention


def test_a_tile_of_several_rows_is_their_share_of_the_memory(tmp_path):
    """Tiles are cut along rows, so two rows of 8k tokens in tiles of 4k need as much as one of
    16k in tiles of 8k."""
    recipe = recipe_of(tmp_path, "tiled_mlp: 4096, rows: 2, loss_chunk: 256, keep_attention: false")
    gpu, shape = parse_machine("H100", None), llama(32, False)
    stage = recipe.body.stages[1].model_copy(update={"batch": 2})
    switches = plan.switches_of(recipe.body, gpu)
    estimate = plan.estimate_stage(recipe, stage, shape, switches, gpu, 1)
    expected = budget.memory(shape, replace(switches, tile=8192), 16384, 1, 1)[0]
    assert estimate.device_bytes == expected
    assert expected > budget.memory(shape, replace(switches, tile=2048), 16384, 1, 1)[0]


def test_all_processes_decide_alike_whether_attention_is_kept(tmp_path, monkeypatch):
    """Where one keeps it and another does not, the other one's messages would wait for ever."""

    class Pair(Mesh):
        size = 2

        def sum_numbers(self, numbers):
            return [mine + theirs for mine, theirs in zip(numbers, (True, False), strict=True)]

    estimates = [SimpleNamespace(keep_attention=True)] * 2
    monkeypatch.setattr(plan, "estimate_run", lambda *_: estimates)
    recipe, gpus = recipe_of(tmp_path, ""), Pair(device=torch.device("cuda"))
    assert plan.decide_keep_attention(recipe, None, gpus) == [True, False]
    assert plan.decide_keep_attention(recipe, None, Mesh()) == [False, False]
    monkeypatch.setattr(plan, "estimate_run", lambda *_: [])  # a GPU whose rate is not known
    assert plan.decide_keep_attention(recipe, None, gpus) == [False, False]
    recipe = recipe_of(tmp_path, "keep_attention: true")
    assert plan.decide_keep_attention(recipe, None, Mesh()) == [True, True]
