"""RULER's two question tasks, over a SQuAD-format file of the user's.

The document that holds the answer stands among others of the same file, as many as fit. None of
these, in the twin no document at all, contains any accepted answer. Files are read in SQuAD's form
(1.1 or 2.0; what has no answer is left out) or in HotpotQA's distractor form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from regraft.errors import InputError
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


def read_quiz(path: str | Path) -> Quiz:
    """Read a SQuAD or HotpotQA JSON file. Raises InputError naming what is wrong with it."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        questions = _squad(data["data"]) if isinstance(data, dict) else _hotpot(data)
    except OSError as error:
        raise InputError(f"--qa {path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"--qa {path} is neither SQuAD's nor HotpotQA's JSON ({error!r}); see the docs of "
            "these for their form."
        ) from None
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


def _make(which: int, kit: Kit, budget: int, number: int) -> Draft:
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
    places = [rng.random() for _ in question.documents]

    def build(units: int, gold: tuple[str, ...] = question.documents) -> str:
        texts = others[:units]
        for place, text in zip(places, gold, strict=False):
            texts.insert(round(place * len(texts)), text)
        shown = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(texts, 1))
        return f"{_INSTRUCTION}{shown}\n\n{_INSTRUCTION}Question: {question.text}"

    def within(units: int) -> str:
        if units > len(others):
            raise InputError(
                f"The --qa file of {name} is too short: {len(others) + 1} documents do not fill "
                f"{budget} tokens; give a larger file or lower --lengths."
            )
        return build(units)

    units = kit.fit(name, within, budget, _PREFIX)
    return Draft(build(units), build(units, ()), question.answers, _PREFIX)


def _solve(prompt: str) -> list[str]:
    """All that stands in the documents: whoever knows the answers will find one of them."""
    return (
        [prompt.split("Document 1:", 1)[1].rsplit(_INSTRUCTION, 1)[0]]
        if "Document 1:" in prompt
        else []
    )


QUESTIONS = [
    Task(f"qa_{which + 1}", partial(_make, which), _solve, 32, "part", "generate", haystack=False)
    for which in range(2)
]
