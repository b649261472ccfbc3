"""Several processes evaluate as one does: the same files, the same order, no hang."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import toy, world_tokenizer
from models import LONG, contents
from train_ranks import Ranks

from regraft.evaluate.answers.model import LanguageModel, Source
from regraft.evaluate.answers.scoring import answer
from regraft.evaluate.prompts.haystack import World
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.tasks import Draft, Kit, Task

QUICK = ("--haystack", "world", "--items", "3", "--texts", "3", "--lengths", "64,128")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("models") / "toy", **LONG)


def evaluated(
    ranks: Ranks, world: int, folder: Path, out: Path, *more: str, kill_at: Path | None = None
) -> tuple[list[int], list[str]]:
    return ranks.run(
        world, "evaluate", f"m={folder}", f"n={folder}", "-o", out, *QUICK, *more, kill_at=kill_at
    )


def test_two_processes_write_what_one_writes_also_when_killed_and_resumed(
    ranks: Ranks, folder: Path, tmp_path: Path
) -> None:
    suite = ("--suite", "notes,cwe,perplexity,drift")
    assert evaluated(ranks, 1, folder, tmp_path / "one", *suite)[0] == [0]
    cell = tmp_path / ".two.regraft-staging" / "items" / "n" / "notes-64.jsonl"
    codes, _ = evaluated(ranks, 2, folder, tmp_path / "two", *suite, kill_at=cell)
    assert set(codes) == {-9}
    codes, errors = evaluated(ranks, 2, folder, tmp_path / "two", *suite)
    assert codes == [2, 2]
    assert all("--resume continues it" in error for error in errors)
    codes, errors = evaluated(ranks, 2, folder, tmp_path / "two", *suite, "--resume")
    assert codes == [0, 0]
    assert "cwe is left out at 64" not in errors[1]  # of two processes only one speaks
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_prompt_cut_between_processes_is_scored_as_a_whole_one(
    ranks: Ranks, folder: Path, tmp_path: Path
) -> None:
    suite = ("--suite", "notes,icl,perplexity,drift")
    assert evaluated(ranks, 1, folder, tmp_path / "one", *suite)[0] == [0]
    cut = (*suite, "--context-parallel", "2")
    assert evaluated(ranks, 2, folder, tmp_path / "two", *cut)[0] == [0, 0]
    one, two = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")
    )
    for task, by_length in one["cells"]["m"].items():
        for length, cell in by_length.items():
            other = two["cells"]["m"][task][length]
            assert (other["score"], other["twin"]) == (cell["score"], cell["twin"])
            assert other["nll"] == pytest.approx(cell["nll"], abs=1e-5)
    for name, value in one["measures"]["m"]["perplexity"]["nll"].items():
        assert two["measures"]["m"]["perplexity"]["nll"][name] == pytest.approx(value, abs=1e-5)
    drift = two["measures"]["n"]["drift"]
    assert drift["kl"] < 1e-6
    assert drift["positions"] == one["measures"]["n"]["drift"]["positions"]


@pytest.mark.parametrize(
    ("world", "more", "message"),
    [
        (2, ("--suite", "cwe", "--context-parallel", "2"), "cwe generates, and --context-parallel"),
        (2, ("--suite", "toy", "--context-parallel", "3"), "does not divide the 2 processes"),
        (1, ("--suite", "toy", "--context-parallel", "2"), "torchrun --nproc-per-node 2"),
    ],
)
def test_what_several_processes_cannot_do_is_one_sentence(
    ranks: Ranks, folder: Path, tmp_path: Path, world: int, more: tuple[str, ...], message: str
) -> None:
    codes, errors = evaluated(ranks, world, folder, tmp_path / "out", *more)
    assert codes == [2] * world
    for error in errors:
        assert message in error
        assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def counted(monkeypatch: pytest.MonkeyPatch, model: LanguageModel, name: str) -> list[int]:
    """How many texts each call of a method is going to be given."""
    counts: list[int] = []
    real = getattr(model, name)

    def call(texts: Any, *rest: Any) -> Any:
        counts.append(len(texts))
        return real(texts, *rest)

    monkeypatch.setattr(model, name, call)
    return counts


def test_a_prompt_read_once_gives_its_candidates_the_same_nll(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Source("m", str(folder)).load(torch.device("cpu"))
    prompter = Prompter(world_tokenizer())
    prose = "".join(World().pieces("candidates", 9))
    words = ("otter", "maple", "copper")

    def make(kit: Kit, budget: int, number: int) -> Draft:
        return Draft(f"{prose} ask {words[number]}", prose, words[number : number + 1], "", words)

    task = Task("own", make, lambda prompt: [], answer_tokens=4)
    items = [task.item(Kit(prompter, World()), 256, number) for number in range(3)]
    read = counted(monkeypatch, model, "branches")
    whole = answer(model, prompter, items, "candidates", budget=10**6, max_new_tokens=4)
    assert not read
    shared = answer(model, prompter, items, "candidates", budget=100, max_new_tokens=4)
    assert read == [3] * 6
    for one, other in zip(whole, shared, strict=True):
        assert other.said == one.said
        assert other.nll == pytest.approx(one.nll, abs=1e-5)
    assert len({round(one.nll or 0, 3) for one in whole}) == 3


def test_prompts_are_continued_together_as_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: LanguageModel = Source("m", str(folder)).load(torch.device("cpu"))
    prompter = Prompter(world_tokenizer())
    words = [" ".join(World().pieces("together", count)) for count in (2, 5, 2, 3, 5)]

    def make(kit: Kit, budget: int, number: int) -> Draft:
        return Draft(words[number], words[number], ("otter",))

    task = Task("own", make, lambda prompt: [], answer_tokens=6)
    items = [task.item(Kit(prompter, World()), 256, number) for number in range(5)]
    together = counted(monkeypatch, model, "generate")
    alone = answer(model, prompter, items, "generate", budget=1, max_new_tokens=6)
    assert together == [1] * 10
    assert answer(model, prompter, items, "generate", budget=1000, max_new_tokens=6) == alone
    assert sorted(together[10:]) == [2, 4, 4]  # of one length, items and twins
    assert len({one.said for one in alone}) > 1
