"""Fill in the far middle: passages are cut out of the first half of a document and asked for at its
end, by the words before and after them. (The report of Qwen2.5-1M, arXiv 2501.15383, names filling
gaps in the middle among its synthetic tasks.)

A passage is a sentence that the document has once. What it said can be told from the text around
its mark and from what the document says later. Of the candidates (at most 10,000, drawn at random)
those are taken whose rare words come again, but neither beside the gap nor among the last 200
tokens before the questions. The document keeps its length: its last words make room for the
questions.

Memory beside the text and its result: 50 bytes a sentence, and the words of the candidates.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter as Counts
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import xxhash
from numpy.typing import NDArray

from regraft.data.boundaries import sentence_ends
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
_MOST_COMPARED = 10_000  # candidates


@dataclass(frozen=True)
class FarMiddle:
    """text: with marks for the passages, and without its last words. queries: about the marks."""

    text: str
    queries: list[Query]


def far_middle(rng: random.Random, text: str, gaps: int, counter: Counter) -> FarMiddle | None:
    """Cut up to `gaps` passages out of a text; with the questions it has the tokens that it had, or
    fewer by less than a word. None where the text is too short or has no passage to cut."""
    late = _end_without(text, _LAST + gaps * _ASKED - 1, counter)
    if late < len(text) // 2 or MARK in text:
        return None
    sentences = _Sentences(text, sentence_ends(text))
    chosen = _choose(rng, sentences, text[late:], gaps)
    if not chosen:
        return None
    queries, parts, done = [], [], 0
    for at in sorted(chosen):
        before, after = sentences[at - 1].split()[-_QUOTED:], sentences[at + 1].split()[:_QUOTED]
        question = rng.choice(QUESTIONS).format(before=" ".join(before), after=" ".join(after))
        passage = sentences[at].strip()
        queries.append(Query(question, passage))
        start = text.index(passage, sentences.start(at))
        parts += [text[done:start], MARK]
        done = start + len(passage)
    rng.shuffle(queries)
    (limit,) = counter.lengths([text])
    body = _shortened("".join([*parts, text[done:]]), asked_text(queries), limit, counter)
    return FarMiddle(body, queries)


@dataclass(frozen=True)
class _Sentences:
    """The sentences of a text, which are made when they are read. ends: of each, in characters."""

    text: str
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def start(self, at: int) -> int:
        return int(self.ends[at - 1]) if at else 0

    def __getitem__(self, at: int) -> str:
        return self.text[self.start(at) : int(self.ends[at])]

    def __iter__(self) -> Iterator[str]:
        return (self[at] for at in range(len(self)))


def _choose(rng: random.Random, sentences: _Sentences, end: str, gaps: int) -> list[int]:
    """The passages that the far text tells most about, in random order among equals.

    end: of the text, which does not count as far."""
    own = {at: _words(sentences[at]) for at in _candidates(rng, sentences)}
    compared = frozenset[str]().union(*own.values())
    sentences_with = Counts[str]()
    for sentence in sentences:
        sentences_with.update(compared & _words(sentence))
    late = _words(end)
    scores: dict[int, float] = {}
    for at, words in own.items():
        near = _words(sentences[at - 1]) | _words(sentences[at + 1]) | late
        rarity = {word: math.log(len(sentences) / sentences_with[word]) for word in words}
        far = sum(
            value for word, value in rarity.items() if sentences_with[word] > 1 and word not in near
        )
        scores[at] = far / (sum(rarity.values()) or 1.0)
    chosen: list[int] = []
    for at in sorted(scores, key=lambda one: -scores[one]):
        if len(chosen) < gaps and scores[at] > 0 and all(abs(at - c) >= _APART for c in chosen):
            chosen.append(at)
    return chosen


def _candidates(rng: random.Random, sentences: _Sentences) -> list[int]:
    """Sentences of the first half that could be passages, in random order: the text has them and
    those beside them once."""
    once = _occur_once(sentences)
    possible = 1 + np.flatnonzero(
        once[:-2] & once[1:-1] & once[2:] & (sentences.ends[1:-1] <= len(sentences.text) // 2)
    )
    np.random.default_rng(rng.getrandbits(64)).shuffle(possible)

    def fits(at: int) -> bool:
        return _FEWEST <= len(sentences[at].split()) <= _MOST and all(
            len(sentences[beside].split()) >= _QUOTED // 2 for beside in (at - 1, at + 1)
        )

    return list(islice(filter(fits, map(int, possible)), _MOST_COMPARED))


def _occur_once(sentences: _Sentences) -> NDArray[np.bool_]:
    """For every sentence, whether the text has no other one that is equal, by hashes of 64 bits."""
    hashes = np.fromiter(
        (xxhash.xxh3_64_intdigest(sentence.strip().encode()) for sentence in sentences),
        np.uint64, len(sentences),
    )  # fmt: skip
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    result = np.zeros(len(sentences), np.bool_)
    result[first[counts == 1]] = True
    return result


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))


def _shortened(body: str, questions: str, limit: int, counter: Counter) -> str:
    """As many words of the body as fit before the questions into `limit` tokens."""
    excess = 0
    while True:
        at = _end_without(body, excess, counter)
        text = body[:at]
        if at < len(body) and not body[at].isspace():
            text = text.removesuffix(text.rsplit(None, 1)[-1])
        text = text.rstrip()
        (tokens,) = counter.lengths([text + questions])
        if tokens <= limit:
            return text
        excess += tokens - limit


def _end_without(text: str, count: int, counter: Counter) -> int:
    """Where a text ends without its last `count` tokens; 0 where it has no more. Only the end of
    the text becomes tokens."""
    size = 16 * count + 256  # characters that surely hold them, unless they are very long
    while True:
        start = max(0, len(text) - size)
        ends = counter.ends(text[start:])
        if len(ends) > count:
            return start + int(ends[-count - 1])
        if not start:
            return 0
        size *= 4
