"""RULER's two question tasks, over a SQuAD-format file of the user's, and a harder one of ours.

The document that holds the answer stands among others of the same file, as many as fit. None of
these, in the twin no document at all, contains any accepted answer. Files are read in SQuAD's form
(1.1 or 2.0; what has no answer is left out) or in HotpotQA's distractor form. RULER draws the
others at random; `qa_hard_1` and `qa_hard_2` take those nearest the question in their words.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.evaluate.prompts.length import UsedUp
from regraft.evaluate.tasks import Draft, Kit, Task

_PREFIX = "\nAnswer:"
_INSTRUCTION = "Answer the question from the documents, with the answer alone and nothing else.\n\n"


@dataclass(frozen=True)
class Question:
    """A question, its accepted answers, and the documents that are needed for them."""

    text: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Quiz:
    """Questions, and all documents of their file, each once."""

    questions: list[Question]
    documents: list[str]

    def nearness(self, question: str) -> dict[str, float]:
        """Of each document: the sum, over the words it shares with the question, of the logarithm
        of how few documents have them."""
        asked = _words(question)
        return {
            text: sum(self._rarity[word] for word in sorted(asked & bag))
            for text, bag in zip(self.documents, self._bags, strict=True)
        }

    @cached_property
    def _bags(self) -> list[set[str]]:
        return [_words(text) for text in self.documents]

    @cached_property
    def _rarity(self) -> dict[str, float]:
        having = Counter(word for bag in self._bags for word in bag)
        return {word: math.log(len(self._bags) / count) for word, count in having.items()}


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def read_quiz(path: str | Path) -> Quiz:
    """Read a SQuAD or HotpotQA JSON file. Raises InputError naming what is wrong with it."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        questions = _squad(data["data"]) if isinstance(data, dict) else _hotpot(data)
    except OSError as error:
        raise InputError(f"--qa {path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"--qa {path} is neither SQuAD's nor HotpotQA's JSON ({error!r}); see the docs of "
            "these for their form."
        ) from None
    if not questions:
        raise InputError(f"--qa {path} holds no question that has an answer; give another file.")
    documents = list(dict.fromkeys(text for question in questions for text in question.documents))
    if len(documents) < 2:
        raise InputError(f"--qa {path} holds {len(documents)} documents; two at least are needed.")
    return Quiz(questions, documents)


def _squad(articles: list[dict[str, Any]]) -> list[Question]:
    return [
        Question(
            entry["question"],
            tuple(dict.fromkeys(answer["text"] for answer in entry["answers"])),
            (paragraph["context"],),
        )
        for article in articles
        for paragraph in article["paragraphs"]
        for entry in paragraph["qas"]
        if entry["answers"] and not entry.get("is_impossible")
    ]


def _hotpot(entries: list[dict[str, Any]]) -> list[Question]:
    found = []
    for entry in entries:
        needed = {title for title, _ in entry["supporting_facts"]}
        documents = [f"{title}\n{''.join(text)}" for title, text in entry["context"]
                     if title in needed]  # fmt: skip
        if any(entry["answer"].lower() in text.lower() for text in documents):  # no yes and no
            found.append(Question(entry["question"], (entry["answer"],), tuple(documents)))
    return found


def _make(which: int, hard: bool, kit: Kit, budget: int, number: int) -> Draft:
    quiz: Quiz = kit.questions[which]
    name = f"qa_{which + 1}"
    order = list(range(len(quiz.questions)))
    kit.rng(name).shuffle(order)
    question = quiz.questions[order[number % len(order)]]
    rng = kit.rng(name, budget, number)
    answers = [answer.lower() for answer in question.answers]
    others = [
        text for text in quiz.documents if not any(answer in text.lower() for answer in answers)
    ]
    rng.shuffle(others)
    if hard:
        others.sort(key=quiz.nearness(question.text).__getitem__, reverse=True)
    places = [rng.random() for _ in question.documents]
    seed = rng.random()

    def build(units: int, gold: tuple[str, ...] = question.documents) -> str:
        texts = others[:units]
        if hard:
            random.Random(seed).shuffle(texts)
        for place, text in zip(places, gold, strict=False):
            texts.insert(round(place * len(texts)), text)
        shown = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(texts, 1))
        return f"{_INSTRUCTION}{shown}\n\n{_INSTRUCTION}Question: {question.text}"

    def within(units: int) -> str:
        if units > len(others):
            raise UsedUp(
                f"The --qa file of {name} is too short: {len(others) + 1} documents do not fill "
                f"{budget} tokens; give a larger file or lower --lengths."
            )
        return build(units)

    units = kit.fit(name, within, budget, _PREFIX)
    return Draft(
        build(units), build(units, ()), question.answers, _PREFIX,
        facts={"question": question.text},
    )  # fmt: skip


def _solve(prompt: str) -> list[str]:
    """All that stands in the documents: whoever knows the answers will find one of them."""
    return (
        [prompt.split("Document 1:", 1)[1].rsplit(_INSTRUCTION, 1)[0]]
        if "Document 1:" in prompt
        else []
    )


def _task(which: int, hard: bool) -> Task:
    name = f"qa_hard_{which + 1}" if hard else f"qa_{which + 1}"
    make = partial(_make, which, hard)
    return Task(name, make, _solve, 32, "part", "generate", haystack=False, judged=True)


QUESTIONS = [_task(which, False) for which in range(2)]
HARD_QUESTIONS = [_task(which, True) for which in range(2)]
