"""The planner against figures others published, and against itself."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pytest
from typer.testing import CliRunner

from regraft import cli
from regraft.errors import InputError
from regraft.train.estimate import budget
from regraft.train.estimate.budget import GIB, Shape, Switches

LLAMA_8B = Shape(8_030_261_248, 8_030_261_248, 4096, 32, 14336, 128256, 1024)
# ArcticTraining, projects/sequence-parallelism, Llama-3.1-8B on one H200, parameters and optimizer
# on the host: tokens, GB of device memory.
ARCTIC = [
    (Switches(whole_logits=True), 65_000, 137.36),
    (Switches(), 300_000, 134.96),
    (Switches(offload=True), 650_000, 126.81),
    (Switches(offload=True, tiled=True), 1_200_000, 136.15),
]


@pytest.mark.parametrize(("switches", "tokens", "published"), ARCTIC)
def test_published_memory_of_one_h200_within_a_tenth(switches, tokens, published):
    away = budget.replace(switches, frozen_bytes=0, trained_bytes=0)
    device, _ = budget.memory(LLAMA_8B, away, tokens, 1, 1)
    assert device / GIB == pytest.approx(published, rel=0.1)


def test_layer_inputs_on_the_host_are_256_kib_a_token():
    _, host = budget.memory(LLAMA_8B, Switches(offload=True), 1_200_000, 1, 1)
    assert host / GIB == pytest.approx(293, abs=1)


def test_the_longest_row_just_fits():
    machine = budget.parse_machine("8xH100-80", None)
    for switches in (Switches(), Switches(tiled=True), Switches(offload=True, tiled=True)):
        most = budget.longest(LLAMA_8B, switches, machine)

        def fits(tokens, switches=switches):
            device, host = budget.memory(LLAMA_8B, switches, tokens, 8, 8)
            return device <= machine.memory and host <= machine.host

        assert fits(most)
        assert not fits(most + 2048)


def test_time_and_links_of_a_step():
    lora = budget.step_flops(LLAMA_8B, 262144, full=False, checkpoint=True)
    assert lora == pytest.approx(9.4e16, rel=0.05)  # 6 P S + 4.5 attention
    machine = budget.replace(budget.parse_machine("8xH100", None), peak=400e12 / budget.ACHIEVED)
    needed = budget.link_needed(LLAMA_8B, machine, 131072, 8)
    assert needed == pytest.approx(10.7e9, rel=0.01)  # F (N - 1) / (2 S)
    assert budget.link_needed(LLAMA_8B, machine, 131072, 1) == 0


def test_the_command_says_what_fits_and_what_would_help(tmp_path):
    config = {**models.LLAMA, "num_hidden_layers": 2}
    folder = models.save(tmp_path / "model", config, models.weights(config))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {folder}\nmethod: lora\nstages:\n  - {{length: 64k, steps: 3, batch: 8}}\n"
        "data: {sources: [{name: a, text: nowhere}]}\n"
    )
    line = ["plan", str(recipe), "--gpus", "8xH100-80", "--host-memory", "1TB"]
    done = CliRunner().invoke(cli.app, [*line, "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["stages"][0]["fits"]
    assert plan["context_devices"] == 8
    rank, shapes = 64, [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
    assert plan["model"]["trained"] == 2 * rank * sum(map(sum, shapes))
    assert "offload and tiled_mlp" in plan["longest"]
    shown = CliRunner().invoke(cli.app, line)
    assert "fits" in shown.stdout


@pytest.mark.parametrize("text", ["8xH1000", "x", "0xH100", ""])
def test_unknown_devices_are_refused(text):
    with pytest.raises(InputError, match="known are B200"):
        budget.parse_machine(text, None)


def test_examples_can_be_planned_by_their_shape():
    from regraft.train.estimate.plan import switches_of
    from regraft.train.recipe.recipe import Recipe

    examples = Path(__file__).parents[3] / "examples"
    gradient = Recipe.read(examples / "train-gradient-1048k.yaml").body
    machine = budget.parse_machine("8xH200", None)
    most = budget.longest(LLAMA_8B, switches_of(gradient), machine)
    assert 2**20 < most < 2**23
