"""Jobs that train, recover, or start from an adapter or a merge recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluated import toy
from models import changed, load, save

from regraft.adapters.apply.apply import apply_lora
from regraft.checkpoint.read.source import Checkpoint
from regraft.data.toy_language import write_tokenizer
from regraft.evaluate.result import read_result
from regraft.graft.job import graft_model
from regraft.merge.job import merge_models

NOTES = "{sources: [{name: a, synthetic: notes, words: 130, documents: 40}]}"
RECOVER = (
    "recover: {recover: {teacher: target, drift: null}, stages: [{length: 64, steps: 1, rate: "
    "1e-3}], data: {held_out: 0.2, sources: [{name: a, synthetic: notes, words: 66, documents: 40, "
    "rows: packed}]}}\n"
)
EVALUATE = "evaluate: {suite: notes, haystack: world, items: 2, lengths: [64]}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with base and derivative, which is the current one."""
    toy(tmp_path / "base", max_position_embeddings=64)
    config = json.loads((tmp_path / "base/config.json").read_text())
    save(tmp_path / "derivative", config,
         changed(load(tmp_path / "base"), rank=None, size=0.05, seed=1))  # fmt: skip
    write_tokenizer(tmp_path / "derivative")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_everything_may_be_trained_by_the_job(tmp_path: Path) -> None:
    training = "{stages: [{length: 64, steps: 1}], data: " + NOTES
    (tmp_path / "r.yaml").write_text(
        f"base: {{train: {training}, model: {{toy: {{layers: 1}}}}}}}}\n"
        f"extend: {{stages: [{{length: 128, steps: 1}}], data: {NOTES}}}\n"
        f"targets: {{name: own, train: {training}}}}}\n"
        "ranks: [2]\n" + RECOVER + EVALUATE
    )
    record = graft_model(tmp_path / "r.yaml", tmp_path / "out")
    assert [stage.name for stage in record.stages] == [
        "train/base", "extend", "extract/rank-2", "train/own", "graft/own", "recover/own",
        "compare/own", "evaluate/own", "card/own",
    ]  # fmt: skip
    result = read_result(tmp_path / "out/reports/own")
    assert list(result.models) == ["recipient", "theta only", "donor", "graft", "recovered"]
    recovered, graft = (load(tmp_path / "out" / name / "own") for name in ("recovered", "grafts"))
    packaged = load(tmp_path / "out/models/own")
    assert not all(graft[name].equal(tensor) for name, tensor in recovered.items())
    assert all(packaged[name].equal(tensor) for name, tensor in recovered.items())
    card = (tmp_path / "out/models/own/README.md").read_text()
    assert "then recovered by a short fine-tune" in card
    assert "all were trained by the recipe" in card


def test_an_extension_by_lora_is_grafted_without_extraction(folder: Path) -> None:
    (folder / "r.yaml").write_text(
        "base: base\nextend: {method: lora, lora: {rank: 2}, stages: [{length: 128, steps: 2, "
        f"rate: 0.01}}], data: {NOTES}}}\ntargets: derivative\n" + EVALUATE
    )
    record = graft_model("r.yaml", "out")
    assert [stage.name for stage in record.stages] == [
        "extend", "graft/donor", "graft/derivative", "compare/derivative", "evaluate/derivative",
        "card/derivative",
    ]  # fmt: skip
    apply_lora("out/trained/extended", "derivative", "expected")
    made, expected = load(folder / "out/models/derivative"), load(folder / "expected")
    assert all(made[name].equal(tensor) for name, tensor in expected.items())
    with Checkpoint.open("out/grafts/donor") as donor:
        assert donor.config["max_position_embeddings"] == 128


def test_a_merge_recipe_is_merged_recovered_and_evaluated(folder: Path) -> None:
    merge = "merge_method: linear\nmodels:\n  - {model: base, parameters: {weight: 0.5}}\n"
    merge += "  - {model: derivative, parameters: {weight: 0.5}}\n"
    (folder / "merge.yaml").write_text(merge)
    (folder / "r.yaml").write_text(merge + RECOVER + EVALUATE)
    record = graft_model("r.yaml", "out")
    assert [stage.name for stage in record.stages] == [
        f"{kind}/merged" for kind in ("graft", "recover", "compare", "evaluate", "card")
    ]
    merge_models("merge.yaml", "expected")
    made, expected = load(folder / "out/grafts/merged"), load(folder / "expected")
    assert all(made[name].equal(tensor) for name, tensor in expected.items())
    result = read_result(folder / "out/reports/merged")
    assert list(result.models) == ["base", "derivative", "merged", "recovered"]
    assert not result.matrix
    assert (folder / "out/index.html").is_file()


def test_a_changed_model_of_a_merge_recipe_is_seen(folder: Path) -> None:
    (folder / "r.yaml").write_text(
        "merge_method: linear\nmodels:\n  - {model: base, parameters: {weight: 0.5}}\n"
        "  - {model: derivative, parameters: {weight: 0.5}}\n"
    )
    first = graft_model("r.yaml", "out")
    state = load(folder / "derivative")
    state["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3  # no sampled weight
    save(folder / "derivative", json.loads((folder / "derivative/config.json").read_text()), state)
    again = graft_model("r.yaml", "out")
    assert first.stages[0].key != again.stages[0].key
    merged = load(folder / "out/models/merged")["model.layers.1.mlp.up_proj.weight"]
    base = load(folder / "base")["model.layers.1.mlp.up_proj.weight"]
    mean = (base[3, 5] + state["model.layers.1.mlp.up_proj.weight"][3, 5]) / 2
    assert merged[3, 5] == pytest.approx(float(mean), rel=1e-6)


def test_a_guard_is_the_base_of_the_recipe(folder: Path) -> None:
    """It guards targets, not the donor, which is base with the adapter."""
    config = json.loads((folder / "base/config.json").read_text())
    longer = {**config, "rope_theta": 160000.0, "max_position_embeddings": 128}
    extended = changed(load(folder / "base"), rank=2, size=0.03, seed=2)
    write_tokenizer(save(folder / "extended", longer, extended))
    recipe = "base: base\nextended: extended\ntargets: derivative\nranks: [2]\n"
    (folder / "r.yaml").write_text(recipe + "apply: {guard: true}\n")
    graft_model("r.yaml", "out")
    apply_lora("out/adapters/rank-2", "derivative", "own", guard="base")
    own, graft = load(folder / "own"), load(folder / "out/grafts/derivative")
    assert all(graft[name].equal(tensor) for name, tensor in own.items())
    (folder / "r.yaml").write_text(recipe)
    graft_model("r.yaml", "out", resume=True)
    plain = load(folder / "out/grafts/derivative")
    assert not all(plain[name].equal(tensor) for name, tensor in own.items())
