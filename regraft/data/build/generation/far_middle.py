"""Fill in the far middle: passages are cut out of the first half of a document and asked for at its
end, by the words before and after them. (The report of Qwen2.5-1M, arXiv 2501.15383, names filling
gaps in the middle among its synthetic tasks.)

A passage is a sentence that the document has once. What it said can be told from the text around
its mark and from what the document says later. Of all candidates those are taken whose rare words
come again, but neither beside the gap nor among the last 200 tokens before the questions. The
document keeps its length: its last words make room for the questions.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter as Counts
from collections.abc import Sequence
from dataclasses import dataclass

from regraft.data.boundaries import split
from regraft.data.build.generation.questions import Query, asked_text
from regraft.data.build.tokens import Counter

MARK = "[____]"
QUESTIONS = (
    'Which words are cut out where the text runs from "{before}" to "{after}"?',
    'Restore what once stood after "{before}" and ahead of "{after}".',
)
_LAST = 200  # tokens before the questions that do not give an answer away
_ASKED = 120  # tokens of a question and its answer, about
_QUOTED = 8  # words of a question from either side of a gap
_FEWEST, _MOST = 8, 60  # words of a passage
_WORD = re.compile(r"\w{4,}")
_APART = 3  # sentences


@dataclass(frozen=True)
class FarMiddle:
    """text: with marks for the passages, and without its last words. queries: about the marks."""

    text: str
    queries: list[Query]


def far_middle(rng: random.Random, text: str, gaps: int, counter: Counter) -> FarMiddle | None:
    """Cut up to `gaps` passages out of a text; with the questions it has the tokens that it had, or
    fewer by less than a word. None where the text is too short or has no passage to cut."""
    ends = counter.ends(text)
    late = _LAST + gaps * _ASKED
    if len(ends) <= late or int(ends[-late]) < len(text) // 2 or MARK in text:
        return None
    sentences = split(text)
    chosen = _choose(rng, sentences, len(text) // 2, text[int(ends[-late]) :], gaps)
    queries = []
    for at in chosen:
        before, after = sentences[at - 1].split()[-_QUOTED:], sentences[at + 1].split()[:_QUOTED]
        question = rng.choice(QUESTIONS).format(before=" ".join(before), after=" ".join(after))
        queries.append(Query(question, sentences[at].strip()))
    if not queries:
        return None
    for at in chosen:
        passage = sentences[at].strip()
        sentences[at] = sentences[at].replace(passage, MARK)
    rng.shuffle(queries)
    (limit,) = counter.lengths([text])
    body = _shortened("".join(sentences), asked_text(queries), limit, counter)
    return FarMiddle(body, queries)


def _choose(
    rng: random.Random, sentences: Sequence[str], half: int, end: str, gaps: int
) -> list[int]:
    """The passages that the far text tells most about, in random order among equals."""
    words = [frozenset(_WORD.findall(sentence.lower())) for sentence in sentences]
    sentences_with = Counts(word for inner in words for word in inner)
    sentence_counts = Counts(sentence.strip() for sentence in sentences)
    late = frozenset(_WORD.findall(end.lower()))
    scores: dict[int, float] = {}
    start = len(sentences[0])
    for at in range(1, len(sentences) - 1):
        start += len(sentences[at])
        if start > half:
            break
        around = (sentences[at - 1], sentences[at + 1])
        if (
            _FEWEST <= len(sentences[at].split()) <= _MOST
            and sentence_counts[sentences[at].strip()] == 1
            and all(len(one.split()) >= _QUOTED // 2 for one in around)
            and all(sentence_counts[one.strip()] == 1 for one in around)
        ):
            near = words[at - 1] | words[at + 1] | late
            rarity = {word: math.log(len(sentences) / sentences_with[word]) for word in words[at]}
            far = sum(
                value
                for word, value in rarity.items()
                if sentences_with[word] > 1 and word not in near
            )
            scores[at] = far / (sum(rarity.values()) or 1.0)
    order = list(scores)
    rng.shuffle(order)
    chosen: list[int] = []
    for at in sorted(order, key=lambda one: -scores[one]):
        if len(chosen) < gaps and scores[at] > 0 and all(abs(at - c) >= _APART for c in chosen):
            chosen.append(at)
    return chosen


def _shortened(body: str, questions: str, limit: int, counter: Counter) -> str:
    """As many words of the body as fit before the questions into `limit` tokens."""
    ends = counter.ends(body)
    room = len(ends)
    while True:
        at = int(ends[room - 1])
        text = body[:at]
        if at < len(body) and not body[at].isspace():
            text = text.removesuffix(text.rsplit(None, 1)[-1])
        text = text.rstrip()
        (tokens,) = counter.lengths([text + questions])
        if tokens <= limit:
            return text
        room -= tokens - limit
