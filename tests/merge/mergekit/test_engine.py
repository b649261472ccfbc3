"""Merges that run in mergekit: what it reads, and what is refused before it starts."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from merge_zoo import CONFIG, EPS, entries, give_tokenizer, merge, refusal, write_recipe
from scripts import Scripts

from regraft import progress
from regraft.merge.job import merge_models
from regraft.records import MergeRecord, read_record

pytestmark = pytest.mark.usefixtures("in_zoo")


@pytest.fixture
def forked_mergekit(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    """mergekit runs in a fork of a process with the imports done instead of a new interpreter."""
    from regraft.merge.mergekit import engine

    def follow(
        command: list[str], environment: dict[str, str], bar: progress.Bar
    ) -> tuple[int, list[str]]:
        done = scripts.run(command[2], *command[3:], env=environment)
        return done.returncode, done.stderr.splitlines()

    monkeypatch.setattr(engine, "_follow", follow)


@pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit is not installed")
@pytest.mark.usefixtures("forked_mergekit")
def test_a_union_of_vocabularies_is_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    """mergekit's own order is that of a set."""
    for name in ("e", "c", "d", "b"):
        shutil.copytree("a", tmp_path / name)
        give_tokenizer(tmp_path / name, {**{f"w{i}": i for i in range(9)}, f"own_{name}": 9})
    recipe = {"merge_method": "linear", "tokenizer_source": "union",
              "models": entries(*(str(tmp_path / name) for name in "ecdb"), weight=1)}  # fmt: skip
    merge_models(write_recipe(tmp_path, recipe), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    numbers = written["model"]["vocab"]
    numbers |= {token["content"]: token["id"] for token in written["added_tokens"]}
    own = [number for number, name in sorted((v, k) for k, v in numbers.items()) if "own" in name]
    assert [numbers[f"own_{name}"] for name in "ecdb"] == own == [9, 10, 11, 12]


@pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit is not installed")
@pytest.mark.usefixtures("forked_mergekit")
def test_a_method_without_native_form_runs_in_mergekit_with_the_recipes_context(
    tmp_path: Path,
) -> None:
    recipe = {"merge_method": "ram", "base_model": "base", "models": [{"model": "a"},
              {"model": "long"}], "context": {"from": "long", "length": "4k"}}  # fmt: skip
    record = merge_models(write_recipe(tmp_path, recipe), tmp_path / "out")
    assert record.engine == "mergekit"
    assert "ram" in record.engine_why
    assert read_record(tmp_path / "out" / "regraft.json", MergeRecord, "mend") == record
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["rope_theta"], config["max_position_embeddings"]) == (160000.0, 4096)
    assert models.load(tmp_path / "out").keys() == models.load(Path("base")).keys()
    assert "ram" in refusal(tmp_path / "..", recipe, engine="native")


@pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit is not installed")
def test_mergekit_reads_only_checked_files_and_its_progress_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside its weights, a model has pickled ones, an adapter, and code; its name has a '+'."""
    texts: list[str] = []
    monkeypatch.setattr(
        progress.Bar, "advance", lambda bar, amount=1, text=None: texts.append(str(text))
    )
    odd = shutil.copytree("a_words", tmp_path / "odd+model")
    (odd / "model.safetensors").rename(odd / "weights.safetensors")
    torch.save({k: v + 1 for k, v in models.load(Path("a")).items()}, odd / "pytorch_model.bin")
    for path in Path("lora2").iterdir():
        if path.name.startswith("adapter_"):
            shutil.copy(path, odd)
    (odd / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name, auto in (("config", "AutoConfig"), ("tokenizer_config", "AutoTokenizer")):
        settings = json.loads((odd / f"{name}.json").read_text())
        settings["auto_map"] = {auto: "evil.X"}
        (odd / f"{name}.json").write_text(json.dumps(settings))
    recipe = {
        "merge_method": "task_arithmetic", "base_model": "base_words", "tokenizer_source": str(odd),
        "models": [
            {"model": str(odd), "parameters": {"weight": 0.25}},
            {"model": "lora2", "parameters": {"weight": 0.75}},
        ],
        "context": {"from": "base"},
    }  # fmt: skip
    (tmp_path / "native").mkdir()
    native = merge(tmp_path / "native", recipe)
    theirs = merge(tmp_path, recipe, engine="mergekit")
    assert any("Executing graph, step" in text for text in texts)
    assert theirs.keys() == native.keys()
    for name, value in native.items():
        torch.testing.assert_close(theirs[name], value, atol=8 * EPS, rtol=8 * EPS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"w0": 0, "w1": 99}, "'w1' of other has number 99, and its embedding has rows 0 to 79"),
        ({"w0": 0, "w1": -1}, "has number -1"),
        ({"w0": 0, "w1": 0}, "'w0' and 'w1' of other share the number 0"),
        ({"w0": 0, "w1": "x"}, "is no tokenizer"),
    ],
)
def test_vocabularies_that_cannot_be_aligned_are_refused_before_mergekit_starts(
    words: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.merge.mergekit import engine

    monkeypatch.setattr(engine, "_run", None)
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: name)
    shutil.copytree("b", tmp_path / "other")
    give_tokenizer(tmp_path / "other", words)
    recipe = {"merge_method": "linear", "tokenizer_source": "base",
              "models": entries("a_words", str(tmp_path / "other"), weight=1)}  # fmt: skip
    message = refusal(tmp_path, recipe).replace(str(tmp_path) + "/", "")
    assert expected in message


def test_shapes_are_compared_before_mergekit_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.merge.mergekit import engine

    monkeypatch.setattr(engine, "_run", None)
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: name)
    wide = {**CONFIG, "intermediate_size": 128}
    models.save(tmp_path / "wide", wide, models.weights(wide))
    recipe = {"merge_method": "ram", "base_model": "base",
              "models": [{"model": str(tmp_path / "wide")}]}  # fmt: skip
    assert "models of one shape" in refusal(tmp_path, recipe)
