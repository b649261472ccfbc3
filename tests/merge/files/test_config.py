"""The output's config: its donor and its context."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from merge_zoo import LONG_TIES, entries, merge, refusal, write_recipe

from regraft.merge.job import merge_models
from regraft.merge.recipe.recipe import Recipe

pytestmark = pytest.mark.usefixtures("in_zoo")


def test_ties_of_a_long_adapter_and_two_derivatives_has_the_long_context(tmp_path: Path) -> None:
    from transformers import AutoConfig

    merge(tmp_path, LONG_TIES)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.max_position_embeddings == 2048
    assert config.rope_parameters["rope_theta"] == 160000.0
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["rope_theta"] == 160000.0


def test_unequal_rope_without_a_context_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, {k: v for k, v in LONG_TIES.items() if k != "context"})
    assert "context: {from: " in message
    assert "theta 10000, 256" in message
    assert "theta 160000, 2k" in message


def test_context_values_change_the_donors(tmp_path: Path) -> None:
    record = merge_models(
        write_recipe(tmp_path, {**LONG_TIES, "context": "theta=8e6,length=4k"}), tmp_path / "out"
    )
    assert record.context.output.max_position_embeddings == 4096
    assert record.context.output.rope_parameters["rope_theta"] == 8e6
    message = refusal(tmp_path / "..", {**LONG_TIES, "context": {"from": "nobody"}})
    assert "'nobody' is not an input of this recipe" in message


def test_donor_is_the_first_model_of_the_recipe(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {
        "merge_method": "linear", "models": entries("b", "long", "a", weight=1), "context": "long",
    })  # fmt: skip
    record = merge_models(recipe, tmp_path / "out", dry_run=True)
    assert record.donor.config == record.donor.tokenizer == "b"


def test_models_are_in_the_order_of_the_recipe_and_not_that_of_a_set(tmp_path: Path) -> None:
    """A set's order changes with Python's hash seed; that of ten names is by chance the recipe's in
    one process of millions."""
    names = [f"model-{number}" for number in (3, 8, 1, 9, 4, 7, 2, 6, 0, 5)]
    recipe = Recipe.read(write_recipe(tmp_path, {
        "merge_method": "linear", "models": entries(*names, weight=1)
    }))  # fmt: skip
    assert [str(ref) for ref, _ in recipe.references()] == names
