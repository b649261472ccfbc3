"""Merge methods and tasks of other packages: the example package, and broken ones."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from forked import Children
from gguf_files import speaking

from regraft import plugins
from regraft.errors import InputError
from regraft.evaluate import suites
from regraft.evaluate.tasks.needle import NEEDLE

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugins"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the example package as pip installs it."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (folder / "regraft_example").symlink_to(EXAMPLE / "regraft_example")
    metadata = folder / f"regraft_example-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_a_merge_method_of_another_package_merges(
    installed: Path, children: Children, tmp_path: Path
) -> None:
    base = models.weights(models.LLAMA)
    inputs = [models.changed(base, rank=None, size=0.02, seed=seed) for seed in (1, 2, 3)]
    models.save(tmp_path / "base", models.LLAMA, base)
    for number, state in enumerate(inputs):
        models.save(tmp_path / f"m{number}", models.LLAMA, state)
    listed = ", ".join(f"{{model: {tmp_path}/m{n}}}" for n in range(3))
    (tmp_path / "recipe.yaml").write_text(
        f"merge_method: example_median\nbase_model: {tmp_path}/base\n"
        f"parameters: {{scale: 0.5}}\nmodels: [{listed}]\n"
    )
    line = ("merge", tmp_path / "recipe.yaml", "-o", tmp_path / "out", "--quiet")
    done = children.run(*line, importable=installed)
    assert done["code"] == 0, done["err"]
    name = "model.layers.0.mlp.up_proj.weight"
    deltas = torch.stack([state[name] - base[name] for state in inputs])
    expected = base[name] + 0.5 * deltas.median(dim=0).values
    torch.testing.assert_close(models.load(tmp_path / "out")[name], expected, rtol=0, atol=1e-6)
    schema = json.loads(children.run("merge", "--schema", importable=installed)["out"])
    assert "example_median" in schema["properties"]["merge_method"]["enum"]


def test_a_task_of_another_package_is_evaluated(
    installed: Path, children: Children, tmp_path: Path
) -> None:
    model = speaking(tmp_path / "m", max_position_embeddings=512)
    done = children.run(
        "evaluate", model, "-o", tmp_path / "out", "--suite", "example_door_code",
        "--lengths", "256", "--items", "3", "--quiet", importable=installed,
    )  # fmt: skip
    assert done["code"] == 0, done["err"]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert "example_door_code" in json.dumps(result["cells"])


def test_the_examples_oracle_solves_the_items_and_not_the_twins(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluated import text_tokenizer

    from regraft.evaluate.prompts.haystack import open_corpus
    from regraft.evaluate.prompts.length import Prompter
    from regraft.evaluate.tasks import Kit

    monkeypatch.syspath_prepend(str(installed))
    from regraft_example.door_code import DOOR_CODE

    kit = Kit(Prompter(text_tokenizer()), open_corpus("grammar"))
    for number in range(5):
        item = DOOR_CODE.item(kit, 256, number)
        assert DOOR_CODE.solve(item.prompt) == item.references
        assert DOOR_CODE.solve(item.twin) == []


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    def register(value: str) -> None:
        point = EntryPoint("mine", value, plugins.TASKS)
        monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
        plugins.load_plugins.cache_clear()

    yield register
    plugins.load_plugins.cache_clear()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_package.task:TASK", r"cannot be loaded \(ModuleNotFoundError"),
        ("regraft.evaluate.tasks.needle:NO_TASK", r"cannot be loaded \(AttributeError"),
        ("regraft.evaluate.tasks.needle:answer_tokens", "registers a function as a task"),
        ("regraft.evaluate.tasks.needle:NEEDLE", "registers the task needle, which exists already"),
    ],
)
def test_a_broken_plug_in_is_named(value: str, message: str, registered: Any) -> None:
    registered(value)
    with pytest.raises(InputError, match=message):
        suites.choose(["needle"], 0)
    assert NEEDLE.name == "needle"
