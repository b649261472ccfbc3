"""The lines on the plan and on the result of a merge."""

from __future__ import annotations

from pathlib import Path

import pytest
from merge_zoo import LONG_TIES, entries, layers, write_recipe

from regraft.merge.job import merge_models, summary

pytestmark = pytest.mark.usefixtures("in_zoo")


def test_without_a_base_the_lines_name_no_changes(tmp_path: Path) -> None:
    recipe = {
        "merge_method": "linear",
        "models": entries("a", weight=0.75) + entries("base", weight=0.25),
    }
    lines = dict(summary(merge_models(write_recipe(tmp_path, recipe), tmp_path / "out")))
    assert not any(label.startswith("change of") for label in lines)
    assert "the result is 25% of the way there" in lines["base"]


def test_changes_are_not_measured_from_a_base_that_no_slice_lists(tmp_path: Path) -> None:
    sources = [layers("a", 0, 4, weight=0.25), layers("b", 0, 4, weight=0.75)]
    recipe = {"merge_method": "linear", "base_model": "base", "slices": [{"sources": sources}]}
    lines = dict(summary(merge_models(write_recipe(tmp_path, recipe), tmp_path / "out")))
    assert "the result is 75% of the way there" in lines["b"]
    assert "minus the first model of its slice" in (tmp_path / "out" / "README.md").read_text()


def test_dry_run_writes_nothing_and_returns_the_plan(tmp_path: Path) -> None:
    record = merge_models(write_recipe(tmp_path, LONG_TIES), tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    plan = record.plan
    assert {"method", "context", "config", "tokenizer", "reads", "peak memory", "seconds"} <= set(
        plan
    )
    assert "base_model" in plan["config"]
    assert "density (0.6, 0.6, 1)" in plan["parameters"]
    assert plan["q_proj"].endswith("]")
