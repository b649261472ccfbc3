"""Logging to TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import pytest
from train_recipes import RECIPE, write_recipe

from regraft.errors import InputError
from regraft.train.job import train_model
from regraft.train.output import log as metrics
from regraft.train.output import trackers

pytestmark = pytest.mark.usefixtures("one_thread")


class Service:
    """A tracking service that records the calls of a run."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Service:
            self.calls.append((name, arguments, named))
            return self

        return call


def test_trackers_log_every_step_and_its_loss(data_folder, tmp_path, monkeypatch):
    wandb, board = types.ModuleType("wandb"), types.ModuleType("torch.utils.tensorboard")
    run, writer = Service(), Service()
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.init, board.SummaryWriter = run.init, writer.SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    text = RECIPE.replace("steps: 5", "steps: 2") + "track: wandb\n"
    train_model(write_recipe(tmp_path, data_folder, text), tmp_path / "out", device="cpu")
    (_, _, started), *rest = run.calls
    assert started["config"]["stages"][1]["length"] == 256
    logged = [(named["step"], values[0]["loss"]) for _, values, named in rest
              if values and "loss" in values[0]]  # fmt: skip
    lines = [
        (line["step"], line["loss"]) for line in metrics.read_lines(tmp_path / "out/metrics.jsonl")
    ]
    assert logged == lines
    assert rest[-1][0] == "finish"
    scalars = [(values[2], values[1]) for name, values, _ in writer.calls
               if name == "add_scalar" and values[0] == "loss"]  # fmt: skip
    assert scalars == lines
    assert not list((tmp_path / "out").rglob("*wandb*"))


def test_offline_runs_are_moved_to_the_output(tmp_path):
    folder = tmp_path / "states/wandb/offline-run-7"
    folder.mkdir(parents=True)
    (folder / "run.wandb").write_text("figures")
    (tmp_path / "staging").mkdir()
    trackers.save_offline_runs(tmp_path / "states", tmp_path / "staging", tmp_path / "out")
    assert (tmp_path / "staging/wandb/offline-run-7/run.wandb").read_text() == "figures"
    trackers.save_offline_runs(tmp_path / "none", tmp_path / "staging", tmp_path / "out")


def test_tensorboard_reads_what_was_trained(data_folder, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    text = RECIPE.replace("steps: 5", "steps: 2")
    train_model(write_recipe(tmp_path, data_folder, text), tmp_path / "out", device="cpu")
    events = accumulator.EventAccumulator(str(tmp_path / "out/tensorboard")).Reload()
    values = [(event.step, event.value) for event in events.Scalars("loss")]
    lines = metrics.read_lines(tmp_path / "out/metrics.jsonl")
    assert values == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines]
    assert values


def test_an_error_of_wandb_is_one_sentence(tmp_path, monkeypatch):
    wandb: Any = types.ModuleType("wandb")

    def init(**_: Any) -> None:
        raise wandb.Error("No API key\nconfigured.")

    wandb.Error, wandb.init = type("Error", (Exception,), {}), init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    body: Any = types.SimpleNamespace(track="wandb", model_dump=dict)
    with pytest.raises(InputError, match=r"\(No API key configured\.\); `wandb login`"):
        trackers.Trackers(tmp_path / "tensorboard", tmp_path / "states", 0, body)


def test_a_tracker_that_is_not_installed_is_refused(data_folder, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "wandb" else find_spec(name)
    )
    with pytest.raises(InputError, match="wandb is not installed here"):
        train_model(
            write_recipe(tmp_path, data_folder, RECIPE + "track: wandb\n"),
            tmp_path / "out",
            device="cpu",
        )
    assert not (tmp_path / "out").exists()
