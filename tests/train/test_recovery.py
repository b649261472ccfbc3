"""Recovery: the drift from the ungrafted derivative, which stops it, and its refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import models
import pytest

from regraft.errors import InputError, RegraftError
from regraft.train.job import train_model

RECIPE = """
model: {model}
method: recover
recover: {{teacher: {teacher}{more}}}
stages:
  - {{length: 128, steps: 60, batch: 8, rate: 2e-3, mix: {{short: 3, long: 1}}}}
data:
  cache: {cache}
  held_out: 0.2
  sources:
    - {{name: short, synthetic: notes, words: 40, documents: 200, rows: packed}}
    - {{name: long, synthetic: notes, words: 128, documents: 60}}
memory: {{rows: 4}}
schedule: {{kind: constant}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A derivative after a short training, and a graft: its damaged weights with another theta."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("recover")
    text = RECIPE.format(model="{toy: {length: 64, hidden: 32, intermediate: 48}}", teacher="x",
                         more="", cache=folder / "cache")  # fmt: skip
    text = text.replace("method: recover\nrecover: {teacher: x}\n", "method: full\n")
    text = text.replace("length: 128", "length: 64").replace("rate: 2e-3", "rate: 5e-3")
    (folder / "first.yaml").write_text(text)
    train_model(folder / "first.yaml", folder / "derivative", device="cpu")
    state = load_file(folder / "derivative" / "model.safetensors")
    damaged = models.changed(state, rank=2, size=1.5, seed=1)
    config = json.loads((folder / "derivative" / "config.json").read_text())
    config |= {"rope_theta": 400.0, "max_position_embeddings": 128}
    config["rope_parameters"]["rope_theta"] = 400.0
    graft = folder / "graft"
    graft.mkdir()
    save_file(damaged, graft / "model.safetensors", {"format": "pt"})
    (graft / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (graft / name).write_bytes((folder / "derivative" / name).read_bytes())
    return folder


def recover(trained: Path, out: Path, more: str = "", **changes: str) -> dict:
    text = RECIPE.format(
        model=trained / "graft", teacher=trained / "derivative", more=more, cache=trained / "cache"
    )
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.yaml").write_text(text)
    return train_model(out / "recipe.yaml", out / "out", device="cpu")


@pytest.mark.parametrize("more", [", drift: 0.3", ", drift: 0.3, distill: 0"])
def test_a_recovery_ends_when_the_drift_on_short_text_is_small(more, trained, tmp_path):
    record = recover(trained, tmp_path, more)
    drifts = [result.drift for result in record.drift]
    assert drifts[-1] <= 0.3 < drifts[0]
    assert record.steps < 60
    assert record.steps % 10 == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == 400.0
    assert config["max_position_embeddings"] == 128


def test_distillation_changes_what_is_learned_and_drift_null_never_stops(trained, tmp_path):
    plain = recover(
        trained, tmp_path / "a", ", drift: null, distill: 0", **{"steps: 60": "steps: 4"}
    )
    distilled = recover(trained, tmp_path / "b", ", drift: null", **{"steps: 60": "steps: 4"})
    assert plain.steps == distilled.steps == 4
    assert plain.drift[-1].drift != distilled.drift[-1].drift


def test_without_a_teacher_the_stages_run_to_their_end(trained, tmp_path):
    teacher = f"teacher: {trained / 'derivative'}"
    record = recover(trained, tmp_path, **{teacher: "every: 1", "steps: 60": "steps: 2"})
    assert record.drift == []
    assert record.steps == 2


def test_noise_is_a_share_of_each_matrix(trained, tmp_path):
    from regraft.checkpoint.read.source import Checkpoint
    from regraft.parallel import Mesh
    from regraft.train.recipe.schema import Body
    from regraft.train.recovery import add_noise
    from regraft.train.step.learner import load

    body = Body.model_validate(
        {"model": "x", "stages": [{"length": 64, "steps": 1}],
         "data": {"sources": [{"name": "a", "text": "x"}]}}
    )  # fmt: skip
    with Checkpoint.open(trained / "graft") as checkpoint:
        learner = load(body, checkpoint, Mesh())
    before = {name: value.detach().clone() for name, value in learner.trained().items()}
    add_noise(learner, 0.01, seed=0)
    for name, value in learner.trained().items():
        moved = (value - before[name]).std() / before[name].std() if value.ndim == 2 else 0
        assert float(moved) == pytest.approx(0.01 if value.ndim == 2 else 0, rel=0.1)


def test_contradictory_recoveries_are_refused(trained, tmp_path):
    for number, (old, new, words) in enumerate(
        [
            ("length: 128", "length: 256", "has a context of 128 tokens"),
            ("rate: 2e-3", "theta: 1e4", "keeps the model's theta"),
            ("rate: 2e-3", "fallback: [1e4]", "keeps the model's theta"),
            ("teacher: ", "distill: 1, short: [short]} #", "distillation needs a teacher"),
            (", rows: packed", "", "give a source with rows: packed"),
            ("method: recover", "method: full", "method is full, which has no recover"),
        ]
    ):
        with pytest.raises(InputError) as caught:
            recover(trained, tmp_path / str(number), **{old: new})
        assert words in str(caught.value)


def test_a_teacher_whose_nll_is_not_finite_is_refused(trained, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(trained / "derivative", broken)
    state = load_file(broken / "model.safetensors")
    state["model.norm.weight"].fill_(3e38)  # finite, and overflows
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(RegraftError, match=r"NLL of the teacher .* is nan: check its weights"):
        recover(trained, tmp_path, ", drift: 0.3", **{str(trained / "derivative"): str(broken)})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("head_dim", "x" * 30, "refuses config.json"),
        ("num_hidden_layers", None, "describes .* weights and .* are stored"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused_by_the_dry_run(
    key, value, message, trained, tmp_path
):
    model = tmp_path / "model"
    shutil.copytree(trained / "derivative", model)
    config = json.loads((model / "config.json").read_text())
    config[key] = value
    config = {name: value for name, value in config.items() if value is not None}
    (model / "config.json").write_text(json.dumps(config))
    text = RECIPE.format(
        model=model, teacher=trained / "derivative", more="", cache=trained / "cache"
    )
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RegraftError, match=message):
        train_model(tmp_path / "recipe.yaml", tmp_path / "out", device="cpu", dry_run=True)
