"""The user's question files, in the format of SQuAD (1.1 or 2.0) or of HotpotQA (distractor)."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.input_files import JsonObject, read_json
from regraft.units import counted


@dataclass(frozen=True)
class Question:
    """A question and its accepted answers.

    supporting: the documents that contain the answer. context: these and the distractors that the
    file itself gives (eight in HotpotQA). related: other paragraphs of the same article.
    """

    text: str
    answers: tuple[str, ...]
    supporting: tuple[str, ...]
    context: tuple[str, ...]
    related: tuple[str, ...] = ()

    @property
    def has_free_answer(self) -> bool:
        """Whether the answer is a phrase of the documents, neither yes nor no."""
        return not {answer.lower() for answer in self.answers} <= {"yes", "no"}

    def answered_by(self, document: str) -> bool:
        """Whether the document contains an accepted answer."""
        return any(answer.lower() in document.lower() for answer in self.answers)


@dataclass(frozen=True)
class Quiz:
    """The questions of a file in its order, and all its documents, sorted, without repetitions."""

    questions: list[Question]
    documents: list[str]

    def word_overlap(self, question: str) -> dict[str, float]:
        """For each document, the sum of log(documents / documents with the word) over the words
        that it shares with the question."""
        question_words = _words(question)
        return {
            text: sum(self._rarity[word] for word in sorted(question_words & bag))
            for text, bag in zip(self.documents, self._bags, strict=True)
        }

    @cached_property
    def _bags(self) -> list[set[str]]:
        return [_words(text) for text in self.documents]

    @cached_property
    def _rarity(self) -> dict[str, float]:
        document_count = Counter(word for bag in self._bags for word in bag)
        return {word: math.log(len(self._bags) / count) for word, count in document_count.items()}


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def read_quiz(path: str | Path) -> Quiz:
    """Read a SQuAD or HotpotQA JSON file. Raises InputError naming what is wrong with it."""
    data = read_json(path)
    try:
        quiz = _squad(data["data"]) if isinstance(data, dict) else _hotpot(data)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"--qa {path} is neither SQuAD's nor HotpotQA's JSON ({error!r}); see their "
            "documentation for the format."
        ) from None
    if not quiz.questions:
        raise InputError(f"--qa {path} has no question with an answer; give another file.")
    if len(quiz.documents) < 2:
        raise InputError(
            f"--qa {path} has {counted(len(quiz.documents), 'document')}; give a file with two or "
            "more."
        )
    return quiz


def _squad(articles: list[JsonObject]) -> Quiz:
    """All paragraphs are documents; those of a question's own article are its related ones."""
    questions: list[Question] = []
    documents: set[str] = set()
    for article in articles:
        paragraphs = [_text(paragraph["context"]) for paragraph in article["paragraphs"]]
        documents.update(paragraphs)
        for paragraph, document in zip(article["paragraphs"], paragraphs, strict=True):
            related = tuple(dict.fromkeys(text for text in paragraphs if text != document))
            for entry in paragraph["qas"]:
                if entry.get("is_impossible") or not entry["answers"]:
                    continue
                answers = tuple(dict.fromkeys(_text(each["text"]) for each in entry["answers"]))
                question = _text(entry["question"])
                questions.append(Question(question, answers, (document,), (document,), related))
    return Quiz(questions, sorted(documents))


def _hotpot(entries: list[JsonObject]) -> Quiz:
    questions: list[Question] = []
    documents: set[str] = set()
    for entry in entries:
        supporting_titles = {title for title, _ in entry["supporting_facts"]}
        context = {title: f"{title}\n{''.join(text)}" for title, text in entry["context"]}
        documents.update(context.values())
        supporting = tuple(text for title, text in context.items() if title in supporting_titles)
        questions.append(
            Question(
                _text(entry["question"]), (_text(entry["answer"]),), supporting,
                tuple(context.values()),
            )
        )  # fmt: skip
    return Quiz(questions, sorted(documents))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r:.40} is not text")
    return value
