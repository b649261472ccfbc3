"""Scores of answers against direct computation from the logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluated import world_tokenizer
from models import GEMMA2, save, weights

from regraft.data.toy_language import IDS, WORDS
from regraft.evaluate.answers.model import LanguageModel, Source
from regraft.evaluate.answers.scoring import answer, batches
from regraft.evaluate.prompts.haystack import World
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.tasks import Draft, Kit, Task

CPU = torch.device("cpu")


def copying(kit: Kit, budget: int, number: int) -> Draft:
    word = ("maple", "otter", "violet")[number % 3]
    return Draft(f"note paris {word} ;", "note paris copper ;", (word,), candidates=("otter", word))


COPY = Task("copy", copying, lambda prompt: prompt.split()[2:3], answer_tokens=4)


def test_teacher_forcing_says_what_greedy_decoding_says(model: LanguageModel) -> None:
    # the answer is what the model itself would go on with, or that with its last word changed
    prompter = Prompter(world_tokenizer())
    prompts = ["anna carries the lantern .", "note paris otter maple ; ask paris", "the old"]
    drafts = []
    for prompt in prompts:
        ids = model.generate([prompter.ids(prompt)], 3)[0]
        drafts.append((prompt, " ".join(WORDS[i] for i in ids)))
        drafts.append((prompt, " ".join(WORDS[i] for i in [*ids[:2], (ids[2] + 1) % 200 + 3])))

    def make(kit: Kit, budget: int, number: int) -> Draft:
        prompt, answer = drafts[number]
        return Draft(prompt, prompt, (answer,))

    task = Task("own", make, lambda prompt: [], answer_tokens=3)
    kit = Kit(prompter, World())
    items = [task.item(kit, 64, number) for number in range(len(drafts))]
    for budget in (1, 20, 1000):
        forced = answer(model, prompter, items, "teacher", budget=budget, max_new_tokens=3)
        said = answer(model, prompter, items, "generate", budget=budget, max_new_tokens=3)
        assert [a.score for a in forced] == [1, 0] * 3
        assert [a.score for a in said] == [1, 0] * 3
        assert [a.twin for a in forced] == [1, 0] * 3


def test_nll_of_an_answer_is_that_of_its_tokens(model: LanguageModel) -> None:
    prompter = Prompter(world_tokenizer())
    items = [COPY.item(Kit(prompter, World()), 64, number) for number in range(3)]
    result = answer(model, prompter, items, "teacher", budget=1000, max_new_tokens=4)
    for item, got in zip(items, result, strict=True):
        for prompt, key in ((item.prompt, "nll"), (item.twin, "twin_nll")):
            ids = torch.tensor([prompter.ids(prompt)])
            logits = model.model(input_ids=ids).logits[0, -1]
            expected = -logits.detach().log_softmax(-1)[IDS[item.references[0]]]
            assert getattr(got, key) == pytest.approx(float(expected), rel=1e-4)


def test_the_likelier_candidate_is_chosen(model: LanguageModel) -> None:
    prompter = Prompter(world_tokenizer())
    items = [COPY.item(Kit(prompter, World()), 64, number) for number in range(3)]
    result = answer(model, prompter, items, "candidates", budget=1000, max_new_tokens=4)
    for item, got in zip(items, result, strict=True):
        ids = torch.tensor([prompter.ids(item.prompt)])
        logits = model.model(input_ids=ids).logits[0, -1].detach()
        best = max(item.candidates, key=lambda word: float(logits[IDS[word]]))
        assert got.said == best
        assert got.score == (best == item.references[0])


def test_batches_hold_no_more_than_the_budget_and_every_row_once() -> None:
    lengths = [5, 90, 7, 300, 7, 2, 90]
    result = list(batches(lengths, 200))
    assert sorted(i for batch in result for i in batch) == list(range(len(lengths)))
    for batch in result:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 200


def test_logits_are_the_models_own_where_it_caps_them(tmp_path: Path) -> None:
    config = {**GEMMA2, "final_logit_softcapping": 0.5, "torch_dtype": "float32"}
    save(tmp_path / "gemma", config, weights(config))
    model = Source("g", str(tmp_path / "gemma")).load(CPU)  # compares them when it loads
    logits = model.head(model.rows([[1, 2, 3]])[0])
    assert logits.abs().max() <= 0.5
