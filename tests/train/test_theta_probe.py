"""The theta probe: a grid around the laws, the same training for each, a score that can lose."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from regraft import cli
from regraft.errors import InputError
from regraft.rope import men_bound, scaling_law
from regraft.rope.longrope import long_factors
from regraft.train import theta_probe as probe
from regraft.train.recipe.recipe import Recipe
from regraft.train.record import LossChange, NeedleScore, ValidationScore

RECIPE = """
model: {{toy: {{length: 64, theta: 70, hidden: 32, intermediate: 48}}}}
stages: [{{length: 128, steps: 5, batch: 2, rate: 1e-3}}]
data:
  cache: {cache}
  held_out: 0.2
  sources: [{{name: long, synthetic: notes, words: 256, documents: 10}}]
{watch}
"""
WATCH = """watch: {rows: 2, needle: {fact: "note oslo {value} ;", question: "ask oslo",
  answer: "{value}", values: [otter, maple], rows: 2}}"""


def test_the_grid_lies_between_the_bound_and_beyond_the_law():
    points = {name: (family, theta) for name, family, theta in probe.grid(8192, 262144, 5e5)}
    assert points["unchanged"] == ("keep", 5e5)
    assert points["scaling law"][1] == round(scaling_law(5e5, 8192, 262144))
    assert points["bound"][1] == round(men_bound(262144))
    assert points["bound"][1] < points["between"][1] < points["scaling law"][1]
    assert points["YaRN"] == ("yarn", 5e5)


def test_every_theta_is_trained_and_scored_alike(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(cache=tmp_path / "cache", watch=WATCH))
    line = ["theta", "64", "256", "--base", "70", "--probe", str(recipe), "--steps", "2"]
    done = CliRunner().invoke(cli.app, [*line, "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    trials = result["trials"]
    assert [trial["score"] for trial in trials] == sorted(trial["score"] for trial in trials)
    assert {trial["name"] for trial in trials} == {name for name, *_ in probe.grid(64, 256, 70)}
    assert result["theta"] == trials[0]["theta"]
    assert result["margin"] == pytest.approx(trials[1]["score"] - trials[0]["score"])
    assert len({trial["zero_shot"] for trial in trials}) == len(trials)  # theta is really used


def test_a_trial_keeps_the_schedule_of_the_last_stage(tmp_path, monkeypatch):
    seen = []

    def train(path, *_, **__):
        (stage,) = Recipe.read(path).body.stages
        seen.append(stage.schedule.warmup)
        score = ValidationScore(nll={"0-16": 1.0}, needle=NeedleScore(nll=1.0, accuracy=0.0))
        watch = SimpleNamespace(first=score, last=score)
        return SimpleNamespace(watch=watch, loss=LossChange(first=1.0, last=1.0))

    monkeypatch.setattr(probe, "train_model", train)
    recipe = tmp_path / "r.yaml"
    text = RECIPE.replace("rate: 1e-3", "rate: 1e-3, schedule: {{warmup: 1}}")
    recipe.write_text(text.format(cache=tmp_path / "cache", watch=WATCH))
    probe.probe_theta(recipe, 64, 256, 70.0, steps=2)
    assert seen == [1] * 6


def test_a_recipe_without_a_needle_is_refused(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(cache=tmp_path / "cache", watch="watch: {rows: 2}"))
    with pytest.raises(InputError, match="needs the recipe's needle"):
        probe.probe_theta(recipe, 64, 256, 70.0)


def test_longrope_is_tried_with_the_factors_of_formula_and_search(tmp_path, monkeypatch):
    seen = []

    def train(path, *_, **__):
        seen.append(Recipe.read(path).body.rope)
        score = ValidationScore(nll={"0-16": 1.0}, needle=NeedleScore(nll=1.0, accuracy=0.0))
        watch = SimpleNamespace(first=score, last=score)
        return SimpleNamespace(watch=watch, loss=LossChange(first=1.0, last=1.0))

    monkeypatch.setattr(probe, "train_model", train)
    monkeypatch.setattr(probe, "best_factors", lambda *_, **__: [1.0, 1.5, 2.0, 4.25])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(cache=tmp_path / "cache", watch=WATCH))
    result = probe.probe_theta(recipe, 64, 256, 70.0, steps=1, search=6)
    trials = {trial.name: trial for trial in result.trials if trial.family == "longrope"}
    assert trials["longrope, searched"].long_factor == [1.0, 1.5, 2.0, 4.25]
    assert trials["longrope, formula"].long_factor == long_factors(4, 70.0, 64, 256)
    assert [rope.long_factor for rope in seen[-2:]] == [t.long_factor for t in trials.values()]
    assert {(rope.family, rope.original) for rope in seen[-2:]} == {("longrope", 64)}
    assert ("factors of longrope, searched", "1, 1.5, 2, 4.25") in probe.table(result)
