"""A text that several questions share: the answers of one question at a time, from one reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import evaluate, text_tokenizer, toy, world_tokenizer
from models import LLAMA, LONG, save, weights

from regraft.evaluate.answers import cache
from regraft.evaluate.answers.cache import cache_bytes
from regraft.evaluate.answers.model import LanguageModel, Source
from regraft.evaluate.answers.scoring import answer
from regraft.evaluate.prompts.haystack import Grammar, World
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.suites import TASKS
from regraft.evaluate.tasks import Kit, Scoring

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random model of the text tokenizer's vocabulary."""
    config = {**LLAMA, "vocab_size": 600, "bos_token_id": 0, "eos_token_id": 1, **LONG}
    folder = save(tmp_path_factory.mktemp("reader") / "m", config, weights(config))
    return Source("m", str(folder)).load(CPU)


@pytest.mark.parametrize(
    ("task", "scoring"),
    [("notes", "teacher"), ("notes", "generate"), ("latent", "candidates"), ("needle", "teacher")],
)
def test_answers_are_those_of_one_question_at_a_time(
    task: str,
    scoring: Scoring,
    reader: LanguageModel,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, kit = reader, Kit(Prompter(text_tokenizer()), Grammar())
    if task == "notes":
        model = Source("m", str(folders["donor"])).load(CPU)
        kit = Kit(Prompter(world_tokenizer()), World())
    groups = [TASKS[task].group(kit, 512, text, 3) for text in range(2)]
    items = [item for group in groups for item in group]
    limits: dict[str, Any] = {"budget": 2048, "max_new_tokens": 3}
    alone = answer(model, kit.prompter, items, scoring, **limits)
    read: list[int] = []
    real = model._read
    monkeypatch.setattr(model, "_read", lambda t, n: (read.append(n), real(t, n))[1])
    shared = answer(model, kit.prompter, items, scoring, **limits, shared=True)
    assert len(read) == 4  # two texts and their twins
    assert min(read) > 350  # of 512: all but the question and the answer's room
    for one, other in zip(alone, shared, strict=True):
        assert (one.score, one.twin, one.said) == (other.score, other.twin, other.said)
        assert other.nll == (one.nll and pytest.approx(one.nll, abs=1e-5))
        assert other.twin_nll == (one.twin_nll and pytest.approx(one.twin_nll, abs=1e-5))
    assert [one.text for one in shared] == [0] * 3 + [1] * 3


def test_an_evaluation_reads_a_text_once_or_says_why_it_does_not(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: dict[str, Any] = {
        "suite": "notes", "lengths": "64", "items": 6, "haystack": "world", "questions_per_text": 4
    }  # fmt: skip
    model = [str(folders["recipient"])]
    counts: list[int] = []
    real = LanguageModel.branches

    def counted(self: LanguageModel, texts: Any, positions: Any) -> Any:
        counts.append(len(texts))
        return real(self, texts, positions)

    monkeypatch.setattr(LanguageModel, "branches", counted)
    shared = evaluate(model, tmp_path / "a", **run)
    assert counts == [4, 2, 4, 2]
    monkeypatch.setattr(cache, "free_memory", lambda device: 100.0)
    with pytest.warns(UserWarning, match=r"again for every question, since the cache of a text"):
        alone = evaluate(model, tmp_path / "b", **run)
    assert counts == [4, 2, 4, 2]
    first, second = (result["cells"]["recipient"]["notes"]["64"] for result in (shared, alone))
    assert first["score"] == second["score"]
    assert first["nll"] == pytest.approx(second["nll"], abs=1e-5)
    assert "texts, then over the questions" in (tmp_path / "a" / "index.html").read_text()


def test_the_size_of_a_cache_is_that_of_its_tensors_and_a_further_layer(
    folders: dict[str, Path],
) -> None:
    model = Source("m", str(folders["recipient"])).load(CPU)
    held = model._read([list(range(1, 41))] * 2, 40)
    layers = [layer.keys.nbytes + layer.values.nbytes for layer in held.layers]
    size = cache_bytes(model.model.config.to_dict(), 40, 4)
    assert size == sum(layers) + layers[0]


def test_a_window_is_not_cached(tmp_path: Path) -> None:
    folder = toy(tmp_path / "m", architectures=["MistralForCausalLM"], model_type="mistral",
                 sliding_window=32)  # fmt: skip
    reason = Source("m", str(folder)).load(CPU).why_not_shared(64)
    assert reason
    assert "windows" in reason
