"""Variants of RULER's question tasks in which only the evidence contains the answer.

`qa_clean_*`: distractors are drawn from the whole file. `qa_hard_*`: they are the documents that
share most words with the question. In both, only the documents that support the answer belong to
the question; no other document contains an accepted answer; yes/no questions are left out;
questions are drawn from the whole file instead of from its beginning. In the twin the supporting
documents are missing.
"""

from __future__ import annotations

import random
from functools import partial

from regraft.data.generate.fit import UsedUp
from regraft.errors import InputError
from regraft.evaluate.tasks import Draft, ItemDetails, Kit, Task
from regraft.evaluate.tasks.quiz import Question, Quiz
from regraft.evaluate.tasks.ruler.questions import ANSWER_TOKENS, PREFIX, prompt, solve, too_few


def answerable(quiz: Quiz) -> list[Question]:
    """The questions whose answer is a phrase of a supporting document."""
    return [
        question
        for question in quiz.questions
        if question.has_free_answer and any(map(question.answered_by, question.supporting))
    ]


def _make(index: int, hard: bool, kit: Kit, budget: int, number: int) -> Draft:
    quiz: Quiz = kit.questions[index]
    name = f"qa_{index + 1}"
    questions = answerable(quiz)
    if not questions:
        raise InputError(
            f"The --qa file of {name} has no question whose answer is in its documents; "
            f"give --suite {name} alone."
        )
    kit.rng(name).shuffle(questions)
    question = questions[number % len(questions)]
    rng = kit.rng(name, budget, number)
    others = [text for text in quiz.documents if not question.answered_by(text)]
    rng.shuffle(others)
    if hard:
        others.sort(key=quiz.word_overlap(question.text).__getitem__, reverse=True)
    positions = [rng.random() for _ in question.supporting]
    seed = rng.random()

    def build(units: int, supporting: tuple[str, ...] = question.supporting) -> str:
        if units > len(others):
            raise UsedUp(too_few(name, len(others) + len(supporting), budget))
        documents = others[:units]
        if hard:
            random.Random(seed).shuffle(documents)
        for position, text in zip(positions, supporting, strict=False):
            documents.insert(round(position * len(documents)), text)
        return prompt(documents, question.text)

    units = kit.fit(name, build, budget, PREFIX)
    details = ItemDetails(question=question.text)
    return Draft(build(units), build(units, ()), question.answers, PREFIX, details=details)


def _task(kind: str, index: int) -> Task:
    make = partial(_make, index, kind == "hard")
    name = f"qa_{kind}_{index + 1}"
    return Task(name, make, solve, ANSWER_TOKENS, "part", "generate", haystack=False, judged=True)


CLEAN_QUESTIONS = [_task("clean", index) for index in range(2)]
HARD_QUESTIONS = [_task("hard", index) for index in range(2)]
