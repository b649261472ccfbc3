"""The figures on changes and conflicts, against the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
from merge_zoo import entries, layers, write_recipe

from regraft.merge.job import merge_models, summary
from regraft.records import MergeRecord, read_record

pytestmark = pytest.mark.usefixtures("in_zoo")


def test_share_lost_to_storage_is_that_of_the_tensors(tmp_path: Path) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base16",
              "models": entries("a16", weight=0.1), "out_dtype": "bfloat16"}  # fmt: skip
    record = merge_models(write_recipe(tmp_path, recipe), tmp_path / "out")
    got, base, a = (models.load(Path(n)) for n in (str(tmp_path / "out"), "base16", "a16"))
    for key, fact in record.tensors.items():
        exact = base[key].float() + 0.1 * (a[key].float() - base[key].float())
        change = float((exact - base[key].float()).norm())
        assert fact.figures.change_norm == pytest.approx(change, rel=1e-3)
        lost = float((exact - got[key].float()).norm()) / change
        assert fact.figures.lost_to_storage == pytest.approx(lost, rel=1e-2)
    assert 0.05 < record.totals.figures.lost_to_storage < 1.0


def test_conflict_report_matches_the_tensors(tmp_path: Path, rendered: None) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base",
              "models": entries("a", weight=0.5) + entries("b", weight=0.25)}  # fmt: skip
    record = merge_models(write_recipe(tmp_path, recipe), tmp_path / "out")
    key = "model.layers.1.mlp.up_proj.weight"
    base, a, b = (models.load(Path(name))[key].double() for name in ("base", "a", "b"))
    fact = record.tensors[key].figures
    (pair,) = fact.pairs
    assert pair.models == ("a", "b")
    cosine = float(((a - base) * (b - base)).sum() / (a - base).norm() / (b - base).norm())
    apart = float((((a - base) * (b - base)) < 0).double().mean())
    assert fact.changes["a"].relative == pytest.approx(float((a - base).norm() / base.norm()))
    assert pair.cosine == pytest.approx(cosine, abs=1e-6)
    assert pair.sign_conflict == pytest.approx(apart, abs=1e-6)
    assert fact.changes["a"].retained == pytest.approx(0.5, abs=0.02)
    assert 0 < pair.overlap < 0.5
    assert set(record.roles) >= {"q_proj", "down_proj", "norm", "embedding", "head"}
    assert (tmp_path / "out" / "merge.png").stat().st_size > 10_000
    assert (
        "How much of each change the result retains" in (tmp_path / "out" / "README.md").read_text()
    )
    assert read_record(tmp_path / "out" / "regraft.json", MergeRecord, "mend") == record


def test_slices_may_have_different_numbers_of_inputs(tmp_path: Path) -> None:
    def sources(start: int, stop: int, *names: str) -> dict[str, Any]:
        return {"sources": [layers(name, start, stop) for name in names]}

    recipe = {
        "merge_method": "ties",
        "base_model": "base",
        "slices": [
            sources(0, 1, "a", "b", "base"),
            sources(1, 2, "c", "base"),
            sources(2, 3, "base"),
            sources(3, 4, "b", "a", "base"),
        ],
        "parameters": {"weight": 1.0, "density": 0.5},
    }
    record = merge_models(write_recipe(tmp_path, recipe), tmp_path / "out")
    tensors = {name: fact for name, fact in record.tensors.items() if "up_proj" in name}
    assert [list(fact.figures.changes) for fact in tensors.values()] == [
        ["a", "b"], ["c"], [], ["b", "a"],
    ]  # fmt: skip
    (pair,) = record.totals.figures.pairs  # one pair, in whatever order a slice lists it
    assert pair.models == ("a", "b")
    assert set(record.totals.figures.changes) == {"a", "b", "c"}
    assert (tmp_path / "out" / "merge.png").is_file()
    assert "a and b" in dict(summary(record))
