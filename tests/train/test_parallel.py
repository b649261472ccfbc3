"""The same recipe on several processes: the same losses, the same files, the same resume."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from regraft.checkpoint.read.source import Checkpoint
from regraft.train.job import train_model
from regraft.train.output import log as metrics
from regraft.train.recipe.model import Toy
from regraft.train.recipe.recipe import Recipe
from regraft.train.step.learner import load
from regraft.train.toy_model import write_toy

RECIPE = """
model: {{toy: {{length: 64, theta: 70, hidden: 32, intermediate: 48}}}}
method: {method}
rope: {{law: scaling}}
stages:
  - {{length: 64, steps: 2, batch: 4, rate: 3e-3, mix: {{short: 1}}}}
  - {{length: 256, steps: 4, batch: 2, rate: 1e-3, mix: {{long: 1}}}}
data:
  cache: {cache}
  held_out: 0.1
  sources:
    - {{name: short, synthetic: notes, words: 30, documents: 60, rows: packed}}
    - {{name: long, synthetic: notes, words: 256, documents: 30}}
positions: {{kind: multi_chunk, window: 64, least: 8}}
watch: {{every: 3, rows: 3, needle: {{fact: "note paris {{value}} ;", question: "ask paris",
  answer: "{{value}}", values: [otter, maple], rows: 3}}}}
save_every: 2
{more}
"""


def write_recipe(
    folder: Path, cache: Path, method: str, more: str = "", text: str = RECIPE
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(text.format(method=method, cache=cache, more=more))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", params=["full", "lora"])
def one_process(request, runs) -> tuple[str, Path]:
    """A run in one process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = runs / request.param / "out"
    train_model(
        write_recipe(runs / request.param, runs / "cache", request.param), out, device="cpu"
    )
    torch.set_num_threads(threads)
    return request.param, out


def assert_same_run(ours: Path, expected: Path) -> None:
    for name, keys in (("metrics.jsonl", ("step", "loss")), ("watch.jsonl", ("step", "nll"))):
        ours_lines, expected_lines = (
            metrics.read_lines(ours / name),
            metrics.read_lines(expected / name),
        )
        assert len(ours_lines) == len(expected_lines)
        for a, b in zip(ours_lines, expected_lines, strict=True):
            assert a[keys[0]] == b[keys[0]]
            assert a[keys[1]] == pytest.approx(b[keys[1]], abs=2e-6)
            assert a.get("needle") == pytest.approx(b.get("needle"), abs=2e-6)
    assert_same_sources(ours, expected)
    for path in expected.glob("*.safetensors"):
        mine, theirs = load_file(ours / path.name), load_file(path)
        assert mine.keys() == theirs.keys()
        for name in theirs:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=2e-4)


def assert_same_sources(ours: Path, expected: Path) -> None:
    mine, theirs = (
        json.loads((folder / "train.json").read_text())["sources"] for folder in (ours, expected)
    )
    assert mine.keys() == theirs.keys() == {"short", "long"}
    for name, source in theirs.items():
        for span in source.keys() & {"within", "beyond"}:
            assert mine[name][span] == pytest.approx(source[span], abs=2e-4)


def test_two_processes_that_save_memory_train_as_one_also_when_killed(
    one_process, runs, ranks, tmp_path
):
    method, expected = one_process
    mesh = {"full": "context: 1, shard: 2", "lora": "context: 2"}[method]
    savers = "memory: {offload: true, keep_attention: true, tiled_mlp: 16}"
    recipe = write_recipe(tmp_path, runs / "cache", method, f"parallel: {{{mesh}}}\n{savers}")
    line = ["train", recipe, "-o", tmp_path / "out", "--device", "cpu", "-q"]
    staging = tmp_path / ".out.regraft-staging" / "states"
    codes, errors = ranks.run(2, *line, kill_at=staging / "state-00000004")
    assert codes == [-9, -9], errors
    assert not (tmp_path / "out").exists()
    codes, errors = ranks.run(2, *line, "--resume")
    assert codes == [0, 0], errors
    assert_same_run(tmp_path / "out", expected)


def test_two_processes_repeat_a_stage_as_one_does(ranks, runs, tmp_path):
    stages = RECIPE[RECIPE.index("stages:") : RECIPE.index("data:")]
    text = RECIPE.replace(
        stages,
        "stages:\n  - {{length: 64, steps: 12, batch: 4, rate: 0.3, theta: 100, fallback: [300], "
        "mix: {{short: 1}}}}\n",
    )
    text = text.replace("save_every: 2", "save_every: 99")
    text = text.replace("watch: {{every: 3, rows: 3", "watch: {{every: 2, rows: 2, stop: true")
    expected = tmp_path / "alone"
    expected.mkdir()
    recipe = write_recipe(expected, runs / "cache", "full", text=text)
    codes, errors = ranks.run(1, "train", recipe, "-o", expected / "out", "--device", "cpu", "-q")
    assert codes == [0], errors
    mesh = "parallel: {context: 1, shard: 2}"
    recipe = write_recipe(tmp_path, runs / "cache", "full", mesh, text=text)
    codes, errors = ranks.run(2, "train", recipe, "-o", tmp_path / "out", "--device", "cpu", "-q")
    assert codes == [0, 0], errors
    lines, expected_lines = (
        metrics.read_lines(folder / "out" / "metrics.jsonl") for folder in (tmp_path, expected)
    )
    assert [line["attempt"] for line in lines] == [line["attempt"] for line in expected_lines]
    assert {line["attempt"] for line in lines} == {1, 2}
    for attempt in (1, 2):  # at a rate this high, rounding soon makes the runs differ
        mine, theirs = (
            [line["loss"] for line in log if line["attempt"] == attempt][:2]
            for log in (lines, expected_lines)
        )
        assert mine == pytest.approx(theirs, abs=5e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("tied", [False, True])
def test_only_the_first_process_reads_the_weights(method, tied, runs, tmp_path):
    write_toy(tmp_path / "toy", Toy(), 0)
    config = json.loads((tmp_path / "toy/config.json").read_text())
    config["tie_word_embeddings"] = tied
    (tmp_path / "toy/config.json").write_text(json.dumps(config))
    body = Recipe.read(write_recipe(tmp_path, runs / "cache", method)).body
    stored = {}
    for rank in (0, 1):
        mesh: Any = SimpleNamespace(
            rank=rank, device=torch.device("cpu"), ulysses=1, fsdp_mesh=object()
        )
        with Checkpoint.open(tmp_path / "toy") as checkpoint:
            learner = load(body, checkpoint, mesh)
        parameters = list(learner.parameters())
        stored[rank] = sum(p.numel() for p in parameters if not p.is_meta)
        assert sum(p.numel() for p in parameters) == stored[0]
    assert stored[1] == (stored[0] if tied else 0)


@pytest.mark.parametrize("world", [1, 2])
def test_a_state_that_does_not_fit_on_the_disk_is_one_sentence(world, ranks, runs, tmp_path):
    recipe = write_recipe(
        tmp_path, runs / "cache", "full", f"parallel: {{context: 1, shard: {world}}}"
    )
    line = ["train", recipe, "-o", tmp_path / "out", "--device", "cpu", "-q"]
    codes, errors = ranks.run(world, *line, largest=150_000)
    assert codes == [1] * world
    for error in errors:
        assert "The training state cannot be written" in error
        assert error.count("\n") == 1


def test_an_error_of_the_first_process_is_one_sentence_in_all(ranks, runs, tmp_path):
    recipe = write_recipe(tmp_path, runs / "cache", "full", "parallel: {context: 1, shard: 2}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other").write_text("not ours")
    codes, errors = ranks.run(2, "train", recipe, "-o", tmp_path / "out", "--device", "cpu", "-q")
    assert codes == [2, 1]
    assert "is not empty" in errors[0]
    assert errors[1].startswith("regraft: Process 1 of 2 lost another one")
    assert errors[1].count("\n") == 1


def test_8_bit_moments_of_sharded_parameters_are_refused(ranks, runs, tmp_path):
    text = "parallel: {context: 1, shard: 2}\noptimizer: {name: adamw8bit}"
    recipe = write_recipe(tmp_path, runs / "cache", "lora", text)
    codes, errors = ranks.run(2, "train", recipe, "-o", tmp_path / "out", "--device", "cpu", "-q")
    assert codes == [2, 2]
    assert all("works in one process only" in error for error in errors)


def test_rows_that_do_not_divide_are_refused_by_every_rank(ranks, runs, tmp_path):
    text = "parallel: {context: 1, shard: 3}"
    recipe = write_recipe(tmp_path, runs / "cache", "full", text)
    codes, errors = ranks.run(3, "train", recipe, "-o", tmp_path / "out", "--device", "cpu", "-q")
    assert codes == [2, 2, 2]
    assert all("4 rows do not divide over 3" in error for error in errors)


def test_heads_that_do_not_divide_are_refused_before_work(ranks, runs, tmp_path):
    recipe = write_recipe(tmp_path, runs / "cache", "full", "parallel: {ulysses: 4}")
    codes, errors = ranks.run(4, "train", recipe, "-o", tmp_path / "out", "--dry-run", "-q")
    assert codes == [2] * 4
    assert all("ulysses 4 does not divide the model's 2 key-value heads" in e for e in errors)


def test_torchrun_needs_nothing_else(one_process, ranks, tmp_path):
    method, expected = one_process
    if method == "lora":
        pytest.skip("once is enough")
    line = ["train", expected.parent / "recipe.yaml", "-o", tmp_path / "out"]
    codes, errors, printed = ranks.run_by_torchrun(2, *line, "--device", "cpu", "--json")
    assert codes == [0, 0], errors
    assert printed.count("\n") == 1  # one process prints
    assert_same_run(tmp_path / "out", expected)
