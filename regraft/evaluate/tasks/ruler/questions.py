"""RULER's two question tasks over the user's files: `qa_1` (SQuAD) and `qa_2` (HotpotQA).

Item i is question i of the file. Its own context (SQuAD's paragraph, HotpotQA's ten) stands among
other documents of the file, all shuffled. Distractors come from the same article first and from the
rest of the file only where the article has no more. Yes/no questions stay, and distractors may
contain the answer; `qa_clean_*` and `qa_hard_*` are without both (see `tasks.questions`).

In the twin the supporting documents, and all that contain the answer, give way to documents that do
not contain it. Whether a document contains yes or no says nothing: there only the supporting go.
"""

from __future__ import annotations

import random
from functools import partial

from regraft.data.generate.fit import UsedUp
from regraft.evaluate.tasks import Draft, ItemDetails, Kit, Task
from regraft.evaluate.tasks.quiz import Question, Quiz

INSTRUCTION = "Answer the question from the documents, with the answer alone and nothing else.\n\n"
PREFIX = "\nAnswer:"
ANSWER_TOKENS = 32


def _make(index: int, kit: Kit, budget: int, number: int) -> Draft:
    quiz: Quiz = kit.questions[index]
    question = quiz.questions[number % len(quiz.questions)]
    name = f"qa_{index + 1}"

    related = kit.rng(name, budget, number, "related").sample(
        question.related, len(question.related)
    )
    known = {*question.context, *question.related}
    others = [text for text in quiz.documents if text not in known]
    kit.rng(name, budget, number, "others").shuffle(others)

    def select(count: int) -> list[str]:
        """`count` documents, the question's context among them."""
        if count > len(quiz.documents):
            raise UsedUp(too_few(name, len(quiz.documents), budget))
        documents = [*question.context, *related, *others][:count]
        kit.rng(name, budget, number, "order", count).shuffle(documents)
        return documents

    def build(count: int) -> str:
        return prompt(select(count), question.text)

    count = kit.fit(name, build, budget, PREFIX, least=len(question.context))
    twin = _without_answer(kit.rng(name, "twin", number), select(count), question, quiz)
    return Draft(
        build(count), prompt(twin, question.text), question.answers, PREFIX,
        details=ItemDetails(question=question.text),
    )  # fmt: skip


def _without_answer(
    rng: random.Random, documents: list[str], question: Question, quiz: Quiz
) -> list[str]:
    def is_evidence(text: str) -> bool:
        supports = text in question.supporting
        return supports or (question.has_free_answer and question.answered_by(text))

    used = set(documents)
    spare = [text for text in quiz.documents if text not in used and not is_evidence(text)]
    rng.shuffle(spare)
    replaced = [
        (spare.pop() if spare else None) if is_evidence(text) else text for text in documents
    ]
    return [text for text in replaced if text is not None]


def prompt(documents: list[str], question: str) -> str:
    """The numbered documents between two copies of the instruction, then the question."""
    numbered = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(documents, 1))
    return f"{INSTRUCTION}{numbered}\n\n{INSTRUCTION}Question: {question}"


def too_few(name: str, documents: int, budget: int) -> str:
    """The message for a file that cannot fill a prompt."""
    return (
        f"The --qa file of {name} is too short: {documents} documents do not fill {budget} "
        "tokens; give a larger file or lower --lengths."
    )


def solve(prompt: str) -> list[str]:
    """Everything between the instructions: a reader of the documents finds the answer there."""
    if "Document 1:" not in prompt:
        return []
    return [prompt.split("Document 1:", 1)[1].rsplit(INSTRUCTION, 1)[0]]


QUESTIONS = [
    Task(
        f"qa_{index + 1}", partial(_make, index), solve, ANSWER_TOKENS, "part", "generate",
        haystack=False, judged=True,
    )
    for index in range(2)
]  # fmt: skip
