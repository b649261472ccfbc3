"""Inputs that do not fit together are refused in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from merge_zoo import CONFIG, WORDS, entries, give_tokenizer, refusal, write_recipe
from safetensors.torch import save_file

from regraft.merge.job import merge_models

pytestmark = pytest.mark.usefixtures("in_zoo")


def test_different_vocabularies_of_one_size_give_a_warning(tmp_path: Path) -> None:
    shutil.copytree("b", tmp_path / "other")
    words = {f"w{i}": i for i in range(WORDS)} | {"w3": 4, "w4": 3}
    give_tokenizer(tmp_path / "other", words)
    recipe = {
        "merge_method": "linear",
        "models": entries("a_words", str(tmp_path / "other"), weight=1),
    }
    with pytest.warns(UserWarning, match="'w3' has number 3 in a_words and 4 in"):
        merge_models(write_recipe(tmp_path, recipe), tmp_path / "out", dry_run=True)


def test_models_of_different_architectures_are_refused(tmp_path: Path) -> None:
    base = models.load(Path("base"))
    wide = {**CONFIG, "intermediate_size": 128}
    words = {**CONFIG, "vocab_size": 90}
    tied = {**CONFIG, "tie_word_embeddings": True}
    deep = {**CONFIG, "num_hidden_layers": 5}
    cases = {
        "wide": (wide, models.weights(wide), "models of one shape"),
        "words": (words, models.weights(words), "the vocabularies differ"),
        "tied": (tied, models.weights(tied), "tied to the embedding"),
        "deep": (deep, models.weights(deep), "gives 5 layers"),
        "less": (CONFIG, {k: v for k, v in base.items() if "2.mlp.up" not in k}, "has no tensor"),
        "heads": ({**CONFIG, "num_attention_heads": 8}, base, "num_attention_heads 8"),
    }
    for name, (config, state, words_) in cases.items():
        models.save(tmp_path / name, config, state)
        recipe = {"merge_method": "linear", "models": entries("a", str(tmp_path / name), weight=1)}
        message = refusal(tmp_path, recipe)
        assert words_ in message, name


def test_an_unrelated_model_gives_a_warning_that_the_card_repeats(tmp_path: Path) -> None:
    models.save(tmp_path / "other", CONFIG, models.weights(CONFIG, seed=9))
    recipe = {"merge_method": "linear", "models": entries("a", "b", "other", weight=1)}
    recipe["models"][2]["model"] = str(tmp_path / "other")
    with pytest.warns(UserWarning, match="other is no relative of a: projection") as caught:
        merge_models(write_recipe(tmp_path, recipe), tmp_path / "out")
    assert len(caught) == 1  # b is a relative
    assert "other is no relative of a" in (tmp_path / "out" / "README.md").read_text()


def test_nan_in_an_input_is_refused_by_name(tmp_path: Path) -> None:
    state = models.load(Path("b"))
    key = "model.layers.2.mlp.up_proj.weight"
    state[key][3, 5] = float("nan")
    models.save(tmp_path / "bad", CONFIG, state)
    recipe = {"merge_method": "linear", "models": entries("a", str(tmp_path / "bad"), weight=1)}
    message = refusal(tmp_path, recipe)
    assert key in message
    assert str(tmp_path / "bad") in message


def test_quantised_weights_and_overflow_are_refused(tmp_path: Path) -> None:
    state = models.load(Path("b"))
    state["model.norm.weight"] = torch.ones(64, dtype=torch.int8)
    folder = models.save(tmp_path / "int8", CONFIG, models.load(Path("b")))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "models": entries("a", str(folder), weight=1),
    }
    assert "not quantised" in refusal(tmp_path, recipe)
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "out_dtype": "float16",
              "models": entries("a", weight=1e9)}  # fmt: skip
    assert "use smaller weights" in refusal(tmp_path, recipe)


def test_an_adapter_on_an_unrelated_base_is_refused(tmp_path: Path) -> None:
    models.save(tmp_path / "stranger", CONFIG, models.weights(CONFIG, seed=77))
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "stranger"),
              "models": entries("lora", weight=1), "context": {"from": "lora"}}  # fmt: skip
    message = refusal(tmp_path, recipe)
    assert "no relative" in message
    assert "line 4" in message
