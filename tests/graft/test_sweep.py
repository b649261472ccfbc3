"""Sweeps of ranks and scales: every point is measured and not stored, one is grafted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluated import toy
from models import LLAMA, LONG, changed, load, save, weights

from regraft.adapters.apply.apply import apply_lora
from regraft.data.toy_language import WORDS, write_tokenizer
from regraft.evaluate.result import read_result
from regraft.evaluate.statistics import Ratio, ratio
from regraft.graft.choose import PointRecord, choose
from regraft.graft.job import graft_model
from regraft.graft.report.sweep import scale_labels
from regraft.graft.stages.evaluation import Compare
from regraft.units import format_bytes


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    base = toy(folder / "base", max_position_embeddings=64)
    config = {**LLAMA, "vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 2}
    state = weights(config)
    for name, rank, seed, more in (
        ("extended", 4, 1, LONG), ("target", None, 2, {"max_position_embeddings": 64})
    ):  # fmt: skip
        save(folder / name, {**config, **more}, changed(state, rank=rank, size=0.1, seed=seed))
        write_tokenizer(folder / name)
    (folder / "recipe.yaml").write_text(
        f"base: {base}\nextended: {folder / 'extended'}\ntargets: {folder / 'target'}\n"
        "ranks: [2, auto]\nscales: [0.5, 1]\n"
        "evaluate: {suite: toy, haystack: world, items: 2, "
        "questions_per_text: 2, lengths: [64, 96, 128]}\n"
    )
    graft_model(folder / "recipe.yaml", folder / "out")
    return folder


def test_every_point_is_measured_and_only_the_chosen_one_is_stored(swept: Path) -> None:
    result = read_result(swept / "out/sweeps/target")
    points = ["rank 2, scale 0.5", "rank 2, scale 1", "rank auto, scale 0.5", "rank auto, scale 1"]
    assert list(result.models) == ["recipient", "theta only", "donor", *points]
    assert {result.models[name].context_length for name in points} == {2048}
    assert result.ratios is not None
    assert {f"transfer {name}" for name in points} <= result.ratios["notes"][128].keys()
    assert [path.name for path in (swept / "out/grafts").iterdir()] == ["target"]


def test_a_plan_names_each_input_once(swept: Path) -> None:
    record = graft_model(swept / "recipe.yaml", swept / "again", dry_run=True)
    assert record.plan is not None
    assert record.plan["sweep/target"].count("rank-auto") == 1


def test_a_sweep_leaves_out_what_the_choice_does_not_read(swept: Path) -> None:
    """Lengths between the target's own context and the greatest, and twins."""
    sweep, report = (read_result(swept / "out" / name / "target") for name in ("sweeps", "reports"))
    assert report.settings.lengths == (64, 96, 128)
    assert sweep.settings.lengths == (64, 128)
    assert report.settings.twins
    assert not sweep.settings.twins


def test_questions_about_one_text_are_not_counted_as_independent(
    swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noted(*scores: Any, texts: Any) -> Any:
        seen.append(texts)
        return ratio(*scores, texts=texts)

    monkeypatch.setattr("regraft.graft.stages.sweep.ratio", noted)
    graft_model(swept / "recipe.yaml", swept / "out")  # finished: only the choice is made again
    # of each of four points: two questions about a text at 128; at 64 also two that shout
    assert seen == [[0, 0], [0, 0, 1, 1]] * 4


def test_a_stage_whose_code_has_changed_runs_again_alone(
    swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Compare, "version", Compare.version + 1)
    plan = graft_model(swept / "recipe.yaml", swept / "out", dry_run=True).plan
    assert plan is not None
    changed = [name for name, text in plan.items() if not text.startswith("finished in")]
    assert changed == ["compare/target", "card/target"]


def test_the_chosen_point_is_grafted_and_evaluated_on_other_items(swept: Path) -> None:
    record = json.loads((swept / "out/graft.json").read_text())["targets"]["target"]
    chosen = record["sweep"]["points"][record["sweep"]["chosen"]]
    assert (record["rank"], record["scale"]) == (chosen["rank"], chosen["scale"])
    adapter = swept / f"out/adapters/rank-{chosen['rank']}"
    apply_lora(adapter, swept / "target", swept / "expected", scale=chosen["scale"])
    made, expected = load(swept / "out/grafts/target"), load(swept / "expected")
    assert all(made[name].equal(tensor) for name, tensor in expected.items())
    sweep, report = (read_result(swept / "out" / name / "target") for name in ("sweeps", "reports"))
    assert sweep.settings.seed != report.settings.seed
    assert {sample.prompt for sample in sweep.samples}.isdisjoint(
        {sample.prompt for sample in report.samples}
    )


def test_the_table_has_size_and_error_of_every_adapter(swept: Path) -> None:
    card = (swept / "out/models/target/README.md").read_text()
    for rank in ("2", "auto"):
        totals = json.loads((swept / f"out/adapters/rank-{rank}/regraft.json").read_text())[
            "totals"
        ]
        row = f"| {rank} | {format_bytes(totals['bytes'])} | {totals['error']:.3f} | 0.5 |"
        assert row in card


def test_points_have_the_scores_of_grafts_on_disk(swept: Path, tmp_path: Path) -> None:
    """NLL is of real numbers, so that a wrong scale or context shows even in random models."""
    from regraft.evaluate.job import evaluate_models

    for rank in ("2", "auto"):
        out = tmp_path / rank
        apply_lora(swept / f"out/adapters/rank-{rank}", swept / "target", out, scale=0.5)
        evaluate_models(
            [f"recipient={swept / 'target'}", f"donor={swept / 'extended'}", f"graft={out}"],
            tmp_path / f"report-{rank}", matrix=True, suite="toy", haystack="world", items=2,
            lengths="64,128", seed=1, twins=False, questions_per_text=2,
        )  # fmt: skip
        name = f"rank-{rank}-scale-0.5"
        for path in (tmp_path / f"report-{rank}/items/graft").iterdir():
            point = swept / "out/sweeps/target/items" / name / path.name
            assert point.read_text() == path.read_text()


def test_points_at_one_position_of_the_figure_have_one_label() -> None:
    def point(rank: str, scale: float, transfer: float) -> PointRecord:
        ratio, retention = Ratio(transfer, 0, 1), Ratio(0.9, 0, 1)
        return PointRecord(rank=rank, scale=scale, score=0, transfer=ratio, retention=retention)

    points = [point("2", 0.5, 0.4), point("2", 1, 0.4), point("4", 0.5, 0.6), point("8", 1, 0.4)]
    assert scale_labels(choose(points, 128, 0.05)) == {(0.9, 0.4): "0.5, 1", (0.9, 0.6): "0.5"}
