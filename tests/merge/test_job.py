"""The whole command: resuming, and mistakes that are refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from merge_zoo import LONG_TIES, entries, layers, refusal, write_recipe

from regraft.errors import InputError
from regraft.merge.job import merge_models
from regraft.merge.report import conflicts

pytestmark = pytest.mark.usefixtures("in_zoo")


def test_a_killed_run_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, LONG_TIES)
    merge_models(recipe, tmp_path / "whole")
    calls = 0
    measure = conflicts.measure

    def dies(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(conflicts, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        merge_models(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="unfinished"):
        merge_models(recipe, tmp_path / "out")
    calls = 15
    merge_models(recipe, tmp_path / "out", resume=True)
    assert calls < 15 + 39
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"merge_method": "linaer"}, "did you mean linear?"),
        ({"models": [*entries("a", weight=1), *entries("gone", weight=1)]},
         "line 6: gone does not exist"),
        ({"models": entries("a", "b", wieght=1)}, "did you mean weight?"),
        ({"models": entries("a", "b")}, "needs the parameter weight of a"),
        ({"models": entries("a", "b", weight="much")}, "must be a number"),
        ({"models": entries("a", "b", weight=[1, "x"])}, "must be a number"),
        ({"merge_method": "slerp", "parameters": {"t": 0.5}}, "base model"),
        ({"merge_method": "slerp", "base_model": "a", "models": entries("a", "b", "c"),
          "parameters": {"t": 0.5}}, "1 model"),
        ({"merge_method": "passthrough"}, "1 model"),
        ({"models": entries("a", "lora", weight=1)}, "the model that it changes as base_model"),
        ({"models": None, "slices": [{"sources": [layers("a", 0, 5)]}],
          "merge_method": "passthrough"}, "has 4 layers"),
        ({"tokenizer_source": "c"}, "no input"),
        ({"chat_template": "chatlm"}, "neither Jinja text"),
        ({"context": {"rope_type": "yran"}}, "did you mean yarn?"),
        ({"merge_method": "ties", "base_model": "base",
          "models": entries("a", weight=1, density=1.5)}, "between 0 and 1"),
    ],
)  # fmt: skip
def test_bad_recipes_are_refused_before_work(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "models": entries("a", "b", weight=1),
        **change,
    }
    message = refusal(tmp_path, {k: v for k, v in recipe.items() if v is not None})
    assert words in message
    assert "recipe.yaml, line" in message


def test_a_folder_that_holds_the_recipe_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    recipe = write_recipe(tmp_path / "mine", LONG_TIES)
    with pytest.raises(InputError, match="overlaps the input"):
        merge_models(recipe, recipe.parent, overwrite=True)
    assert recipe.is_file()
