"""Every question of `tasks` is answered by its text, and evaluation has none of its words."""

from __future__ import annotations

import random
import re

import pytest
from built import documents, run_step
from evaluated import world_tokenizer

from regraft.data.build.document import Document, Message
from regraft.data.build.generation.episodes import KINDS
from regraft.data.build.generation.far_middle import QUESTIONS
from regraft.data.build.statistics import Statistics
from regraft.data.build.steps.tasks import Tasks
from regraft.evaluate.prompts.haystack import Fixed
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.suites import TASKS
from regraft.evaluate.tasks import Kit

TEXT = "".join(f"Filler number {number} stands here. " for number in range(60))
NAME = r"([A-Z][a-z]+ \d\d)"
CODE = r"(\w\w-\d{3}-\w\d\d)"


def solve(text, question):
    """The answer, read from the text by a program for each kind."""
    name = re.findall(NAME, question)
    if "code" in question or "issued" in question or "caller" in question:
        for pattern in (rf"{name[0]}[^.]*? {CODE}", rf"{CODE} was issued to {name[0]}\b"):
            if found := re.findall(pattern, text):
                return found[0]
    if "parcel" in question or "signs" in question:
        steps = dict(re.findall(rf"{NAME} (?:is sent on|points) to {NAME}", text))
        at = name[0]
        while at in steps:
            at = steps[at]
        return at
    if "berth" in question:
        berths = re.findall(rf"{name[0]} has now been moved to (berth \w+)", text)
        return berths[-2 if "before" in question else -1]
    if "cart" in question or "load" in question:
        crates = [int(n) for n in re.findall(rf"{name[0]} unloaded (\d+) crates", text)]
        how = len if "often" in question else max if "largest" in question else sum
        return str(how(crates))
    start = re.findall(r"a (\w\w)\w* bead", question)[0]
    (bowl,) = set(re.findall(rf"A {start}\w* bead goes into bowl {NAME}", text))
    return bowl


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_is_answered_by_the_text(kind):
    step = Tasks(share=1.0, kinds=[kind], every=100, form="messages")
    result, statistics = run_step(step, documents(*[TEXT] * 6))
    assert statistics.counts == {kind: 6}
    for made in result:
        turns = [turn.content for turn in made.messages]
        assert len(turns) >= 2
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            assert solve(turns[0], question.split("\n")[-1]) == answer
        assert made.text.endswith(f"{turns[-2].split(chr(10))[-1]}\n{turns[-1]}")
        assert made.metadata["answer"] == turns[-1]
        hidden = re.sub(r"Filler number \d+ stands here\. ?", "", turns[0])
        assert len(hidden) < len(turns[0]) - len(TEXT) + 70  # the document is all there


def test_a_share_of_documents_gets_tasks_and_conversations_none():
    chat = Document("a", "c", "a", messages=(Message("user", "a"),))
    result, _ = run_step(Tasks(share=0.5), [*documents(*[TEXT] * 40), chat])
    changed = [one for one in result if "tasks" in one.metadata]
    assert 10 <= len(changed) <= 30
    assert result[-1].messages == chat.messages
    again, _ = run_step(Tasks(share=0.5), [*documents(*[TEXT] * 40), chat])
    assert again == result


def test_a_source_without_a_task_is_counted_and_named():
    chat = Document("a", "c", "chats", messages=(Message("user", "a"),))
    step = Tasks(share=1, kinds=["far_middle"])
    items = [chat, chat, *documents("Too short. ", source="chats"), *documents("Short. ")]
    _, statistics = run_step(step, items)
    assert statistics.counts == {
        "conversations left as they are": 2, "no passage to cut out": 2
    }  # fmt: skip
    total = Statistics("all/1-tasks")
    for _ in range(2):
        total.include(statistics)
    assert total.by_source["a"] == {"no passage to cut out": 2}
    total.count("retrieval", source="a")
    assert step.warnings(total) == [
        "No document of 'chats' has a task of the step all/1-tasks (conversations left as they "
        "are: 4, no passage to cut out: 2); leave the step out for this source, or give it other "
        "kinds."
    ]


def grams(text, n):
    words = re.findall(r"[\w-]+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_no_wording_key_or_value_is_one_of_evaluation():
    prompter = Prompter(world_tokenizer())
    kit = Kit(prompter, Fixed("filler", [f"Xx{n} yy{n} zz{n}. " for n in range(4000)]))
    evaluated, keys = set(), set()
    for task in TASKS.values():
        if task.name.startswith("qa_"):  # of the user's questions
            continue
        item = task.item(kit, 800, 0)
        text = f"{item.prompt} {item.answer}"
        evaluated |= grams(text, 5)
        keys |= set(re.findall(r"[a-z]+-[a-z]+|\d{7}|\b[a-z]{6}\b", text))
    for name, make in KINDS.items():
        for seed in range(5):
            episode = make(random.Random(seed), 40, 6)
            lines = [*episode.facts, *(f"{q.question} {q.answer}" for q in episode.queries)]
            trained = set().union(*(grams(line, 5) for line in lines))
            assert not trained & evaluated, name
            answers = {query.answer.lower() for query in episode.queries}
            assert not answers & keys, name
    for wording in QUESTIONS:
        assert not grams(wording.format(before="", after=""), 5) & evaluated
