"""Several questions about one text: each can be answered from it, none from its twin."""

from __future__ import annotations

import pytest
from evaluated import text_tokenizer, world_tokenizer

from regraft.evaluate.answers.cache import common_tokens
from regraft.evaluate.prompts.haystack import Grammar, World
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.suites import TASKS
from regraft.evaluate.tasks import Kit, score_text

GROUPED = [task for task in TASKS.values() if task.make_group]


@pytest.fixture(scope="module")
def kits() -> tuple[Kit, Kit]:
    kit = Kit(Prompter(text_tokenizer()), Grammar(), needles=2, decoys=1)
    return kit, Kit(Prompter(world_tokenizer()), World())


@pytest.mark.parametrize("task", GROUPED, ids=lambda task: task.name)
def test_the_oracle_answers_every_question_and_none_of_the_twin(task, kits):
    kit = kits[task.name in ("notes", "shout")]
    items = task.group(kit, 1600, 2, 6)
    assert [item.number for item in items] == list(range(12, 18))
    assert len({item.prompt for item in items}) == 6
    for item in items:
        assert item.tokens + task.answer_tokens <= 1600
        said = " ".join(task.solve(item.prompt))
        assert score_text(said, item.references, task.scorer) == 1
        assert score_text(" ".join(task.solve(item.twin)), item.references, task.scorer) == 0
    for texts in ([item.prompt for item in items], [item.twin for item in items]):
        ids = [kit.prompter.ids(text) for text in texts]
        assert common_tokens(ids) > 0.8 * len(ids[0])


@pytest.mark.parametrize("task", GROUPED, ids=lambda task: task.name)
def test_a_single_question_is_the_item_of_that_number(task, kits):
    kit = kits[task.name in ("notes", "shout")]
    (item,) = task.group(kit, 1200, 3, 1)
    assert item.hash == task.item(kit, 1200, 3).hash


def test_every_depth_has_needles_whatever_the_questions_per_text(kits):
    items = [item for text in range(5) for item in TASKS["needle"].group(kits[0], 1600, text, 2)]
    assert sorted(item.details.depth for item in items) == sorted(kits[0].depths * 2)


def test_a_text_has_no_more_questions_than_evidence(kits):
    assert len(TASKS["notes"].group(kits[1], 64, 0, 16)) == 4
    assert len(TASKS["notes"].group(kits[1], 1024, 0, 16)) == 8
    assert len(TASKS["latent"].group(kits[0], 1600, 0, 16)) == 6
