"""Which weights a recovery exports: the veto of the long range, resumed and on two processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regraft.records import read_record
from regraft.train.job import train_model
from regraft.train.recipe.validation import Veto
from regraft.train.record import NeedleScore, RecoveryPoint, TrainingRecord, ValidationRecord
from regraft.train.selection import best, choice_of, is_hopeless, judge

RECIPE = """
model: {model}
method: recover
recover: {{teacher: {model}, drift: null, rows: 4, veto: {veto}}}
stages:
  - {{length: 64, steps: {steps}, batch: 4, rate: 1e-2, mix: {{short: 1}}}}
data:
  cache: {cache}
  held_out: 0.2
  sources:
    - {{name: short, synthetic: notes, words: 30, prose: 0.1, shout: 1, documents: 20,
       rows: packed}}
    - {{name: long, synthetic: notes, words: 130, prose: 1, documents: 10}}
memory: {{rows: 4}}
watch: {{every: 1, rows: 2, length: 128, sources: [long]}}
schedule: {{kind: constant}}
save_every: 2
"""


def write_recipe(folder: Path, model: Path, cache: Path, **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"veto": "{far: 0.2}", "steps": 6, **values}
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=model, cache=cache, **values))
    return path


@dataclass(frozen=True)
class Runs:
    """An uninterrupted recovery of `model` with a veto. calls: of it to the disk."""

    folder: Path
    model: Path
    record: TrainingRecord
    calls: int

    def recipe(self, folder: Path, **values: object) -> Path:
        return write_recipe(folder, self.model, self.folder / "cache", **values)


@pytest.fixture(scope="module")
def runs(trained_model, children, tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("selection")
    recipe = write_recipe(folder, trained_model, folder / "cache")
    ended = children.run("train", recipe, "-o", folder / "out", "--device", "cpu", "-q")
    assert ended["code"] == 0, ended["err"]
    record = read_record(folder / "out" / "train.json", TrainingRecord, "")
    return Runs(folder, trained_model, record, ended["calls"])


@pytest.mark.usefixtures("one_thread")
def test_plain_recovery_loses_the_long_range_and_the_veto_keeps_it(runs, tmp_path):
    choice = runs.record.choice
    assert choice is not None
    graft, last = choice.points[0], choice.points[-1]
    assert last.far_nll > graft.far_nll + 0.2  # where plain recovery ends
    assert last.drift < choice.point.drift < graft.drift
    assert choice.point.far_nll <= graft.far_nll + 0.2
    assert 0 < choice.step < runs.record.steps == 6
    assert runs.record.watch.last.step == choice.step
    recipe = runs.recipe(tmp_path, veto="null", steps=choice.step)
    plain = train_model(recipe, tmp_path / "out", device="cpu")
    assert plain.choice is None
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert (runs.folder / "out" / "model.safetensors").read_bytes() == weights


def test_the_card_says_what_was_chosen_and_why(runs):
    card = (runs.folder / "out" / "README.md").read_text()
    step = runs.record.choice.step
    assert f"the weights after step {step}: the least drift of {step + 1} points" in card
    assert "nats above the graft's (step 6)" in card
    assert "NLL at 64-128 more than 0.2 nats above the graft's" in card


def test_a_killed_recovery_exports_the_same_bytes(runs, children, tmp_path):
    line = ["train", runs.folder / "recipe.yaml", "-o", tmp_path / "out", "--device", "cpu", "-q"]
    for share in (0.55, 0.3):
        assert children.run(*line, "--resume", die=int(share * runs.calls))["code"] == -9
    last = children.run(*line, "--resume")
    assert last["code"] == 0, last["err"]
    names = ("model.safetensors", "watch.jsonl")
    ours, expected = ([(out / name).read_bytes() for name in names]
                      for out in (tmp_path / "out", runs.folder / "out"))  # fmt: skip
    assert ours == expected
    assert read_record(tmp_path / "out" / "train.json", TrainingRecord, "").choice == (
        runs.record.choice
    )


def test_two_processes_choose_as_one_also_when_killed(runs, ranks, tmp_path):
    recipe = runs.recipe(tmp_path)
    recipe.write_text(recipe.read_text() + "parallel: {context: 1, shard: 2}\n")
    line = ["train", recipe, "-o", tmp_path / "out", "--device", "cpu", "-q"]
    states = tmp_path / ".out.regraft-staging" / "states"
    codes, errors = ranks.run(2, *line, kill_at=states / "state-00000006")
    assert codes == [-9, -9], errors
    best_step = runs.record.choice.step
    assert (states / "best" / f"state-{best_step:08d}").exists()
    codes, errors = ranks.run(2, *line, "--resume")
    assert codes == [0, 0], errors
    assert read_record(tmp_path / "out" / "train.json", TrainingRecord, "").choice.step == best_step
    ours, expected = (load_file(out / "model.safetensors")
                      for out in (tmp_path / "out", runs.folder / "out"))  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=5e-4)


@pytest.mark.usefixtures("one_thread")
def test_a_recovery_by_lora_exports_a_model_with_the_best_factors(runs, tmp_path):
    recipe = runs.recipe(tmp_path)
    lora = "lora: {rank: 4, alpha: 16}\n"
    recipe.write_text(recipe.read_text().replace("rate: 1e-2", "rate: 5e-2") + lora)
    record = train_model(recipe, tmp_path / "out", device="cpu")
    assert record.export == "model"
    assert 0 < record.choice.step < record.steps
    shorter = runs.recipe(tmp_path / "shorter", veto="null", steps=record.choice.step)
    shorter.write_text(shorter.read_text().replace("rate: 1e-2", "rate: 5e-2") + lora)
    train_model(shorter, tmp_path / "shorter" / "out", device="cpu")
    expected = (tmp_path / "shorter" / "out" / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == expected
    weights, before = (load_file(folder / "model.safetensors")
                       for folder in (tmp_path / "out", runs.model))  # fmt: skip
    changed = {name for name, value in weights.items() if not torch.equal(value, before[name])}
    assert changed
    assert all("proj" in name for name in changed)


def point(step: int, drift: float | None, veto: str | None = None) -> RecoveryPoint:
    return RecoveryPoint(step=step, drift=drift, far_nll=2.0, needles=0.9, veto=veto)


def validation(far: float, needles: float | None = None) -> ValidationRecord:
    needle = None if needles is None else NeedleScore(nll=1.0, accuracy=needles)
    return ValidationRecord(
        step=7, stage=1, attempt=1, length=64, nll={"0-32": 9.0, "32-64": far}, needle=needle
    )


def test_a_veto_is_of_the_farthest_positions_and_of_the_needles():
    bounds, graft = Veto(far=0.25, needles=0.25), [point(0, 0.5)]
    assert judge([], 0.5, validation(2.0, 0.9), bounds).veto is None
    assert judge(graft, 0.5, validation(2.25, 0.75), bounds).veto is None
    far = judge(graft, 0.5, validation(2.5, 0.75), bounds).veto
    assert far == "NLL at positions 32-64 is 0.500 nats above the graft's"
    both = judge(graft, 0.5, validation(2.5, 0.5), bounds).veto
    assert both == f"{far} and needles fell from 90% to 50%"


def test_the_best_has_the_least_drift_without_a_veto():
    points = [point(0, 0.5), point(1, 0.2), point(2, 0.0, "it forgot"), point(3, 0.3)]
    assert best(points).step == 1
    assert "the last because it forgot (step 2)" in choice_of(points, Veto(), "32-64").reason
    assert best([point(0, None), point(1, None), point(2, None, "it forgot")]).step == 1
    assert best([point(0, 0.5), point(1, 0.1, "it forgot")]).step == 0


def test_three_vetoes_in_succession_end_a_recovery():
    vetoed = [point(step, 0.0, "it forgot") for step in (1, 2, 3)]
    assert not is_hopeless([point(0, 0.5), *vetoed[:2]])
    assert not is_hopeless([*vetoed[:2], point(3, 0.1), vetoed[2]])
    assert is_hopeless([point(0, 0.5), *vetoed])
