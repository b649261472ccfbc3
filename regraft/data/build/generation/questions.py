"""Questions at the end of a document, and whether a question about a piece of one is any good."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from regraft.data.build.document import Document, Message

Form = Literal["text", "messages"]
_REPLY = re.compile(r"Question:\s*(\S.*?)\s*\nAnswer:\s*(\S.*?)\s*$", re.DOTALL)
_VAGUE = re.compile(r"\b(this|the) (passage|text|snippet|excerpt)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Query:
    """A question and its answer."""

    question: str
    answer: str


def ask_at_end(document: Document, text: str, queries: Sequence[Query], form: Form) -> Document:
    """The document with another text and questions after it; the last question and answer are in
    its metadata.

    form: text, or the turns of a conversation, whose answers are the assistant's.
    """
    last = queries[-1]
    made = document.with_text(text + asked_text(queries)).with_metadata(
        {"question": last.question, "answer": last.answer}
    )
    if form == "text":
        return made
    turns = []
    for number, query in enumerate(queries):
        before = "" if number else f"{text}\n\n"
        turns += [Message("user", before + query.question), Message("assistant", query.answer)]
    return replace(made, messages=tuple(turns))


def asked_text(queries: Sequence[Query]) -> str:
    """The questions and answers that follow a text."""
    return "".join(f"\n\n{query.question}\n{query.answer}" for query in queries)


def read_query(reply: str) -> Query | None:
    """The question and answer of a reply in two lines; None where it has another form."""
    match = _REPLY.search(reply)
    return None if match is None else Query(match[1], match[2])


def problem_of_query(query: Query, pieces: Sequence[str], at: int) -> str | None:
    """Why a question about piece `at` of a document is of no use; None if it is."""
    answer = query.answer.lower()
    where = [number for number, piece in enumerate(pieces) if answer in piece.lower()]
    if _VAGUE.search(query.question):
        return "a question about 'the passage'"
    if at not in where:
        return "an answer that is not in its piece"
    if len(where) > 1:
        return "an answer that is in several pieces"
    return "an answer in its question" if answer in query.question.lower() else None


def copied_share(old: str, new: str, run: int = 8) -> float:
    """Share of the words of `new` that are in a run of `run` words of `old`; of shorter texts, 1
    where they are equal."""
    before, after = old.split(), new.split()
    if min(len(before), len(after)) < run:
        return float(before == after)
    runs = {tuple(before[i : i + run]) for i in range(len(before) - run + 1)}
    marked = [False] * len(after)
    for at in range(len(after) - run + 1):
        if tuple(after[at : at + run]) in runs:
            marked[at : at + run] = [True] * run
    return sum(marked) / len(marked)
