"""Tokenizer files and chat templates of the output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from merge_zoo import entries, merge, refusal, write_recipe

from regraft.merge.job import merge_models

pytestmark = pytest.mark.usefixtures("in_zoo")


def test_tokenizer_source_and_chat_template_decide_the_files(tmp_path: Path) -> None:
    for name in ("t1", "t2"):
        shutil.copytree("a" if name == "t1" else "b", tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": {"x": 0, "y": 1}}, "made_by": name})
        )
        (tmp_path / name / "tokenizer_config.json").write_text('{"chat_template": "{{ old }}"}')
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "models": entries(str(tmp_path / "t1"), str(tmp_path / "t2"), weight=1),
        "tokenizer_source": str(tmp_path / "t2"),
        "chat_template": "{{ messages }} and more",
    }
    merge(tmp_path, recipe)
    out = tmp_path / "out"
    assert json.loads((out / "tokenizer.json").read_text())["made_by"] == "t2"
    assert (out / "chat_template.jinja").read_text() == "{{ messages }} and more"
    assert "old" not in (out / "tokenizer_config.json").read_text()


def test_a_deeply_nested_tokenizer_json_is_refused(tmp_path: Path) -> None:
    shutil.copytree("a", tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text('{"model": ' + "[" * 5000)
    recipe = {"merge_method": "passthrough", "models": entries(str(tmp_path / "broken"))}
    assert "tokenizer.json" in refusal(tmp_path, recipe)


@pytest.mark.parametrize(
    "content",
    ["[1]", "{", "[" * 5000, '{"chat_template": "\\ud800"}', "\xff", '{"chat_template": [1, {}]}'],
    ids=["list", "cut", "deep", "surrogate", "latin-1", "templates"],
)
@pytest.mark.parametrize("template", ["auto", "{{ messages }} and more"])
def test_broken_tokenizer_configs_are_refused(content: str, template: str, tmp_path: Path) -> None:
    shutil.copytree("a", tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer_config.json").write_bytes(content.encode("latin-1"))
    recipe = {"merge_method": "passthrough", "models": entries(str(tmp_path / "broken")),
              "chat_template": template}  # fmt: skip
    if "templates" in content or "[1, {}]" in content:
        merge_models(write_recipe(tmp_path, recipe), tmp_path / "out", dry_run=True)
    else:
        assert "tokenizer_config.json" in refusal(tmp_path, recipe)
