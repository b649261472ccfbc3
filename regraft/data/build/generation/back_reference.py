"""Questions on earlier parts of a long conversation, answered by what was said there.

Each part is a conversation of its own, whose first question and answer are asked for by quoting:
how the answer began, which question it answered, or which question came next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regraft.data.build.document import Message

Pair = tuple[Message, Message]
"""A question and its answer."""
QUOTE = 12
"""Words of a quotation that names a part."""
_LONGEST = 60  # words of a question that is asked for

_BEGINNING = (
    'Some time ago I asked you: "{quote}" Please give me the first {words} words of your answer '
    "again.",
    'I need the beginning of what you said when I asked "{quote}" - {words} words, exactly as they '
    "were.",
    'Go back to the question that starts with "{quote}" How did your answer begin? {words} words '
    "are enough.",
)
_QUESTION = (
    'You once answered me: "{quote}" What had I asked you?',
    'Which question of mine was your answer for that begins with "{quote}"?',
)
_NEXT = (
    'After we were done with the question "{quote}" we turned to something else. What did I ask '
    "you then?",
    'What was the first thing that I asked after the part that started with "{quote}"?',
)


@dataclass(frozen=True)
class Part:
    """A conversation within a longer one. start: its first token there."""

    messages: tuple[Message, ...]
    start: int

    @property
    def question(self) -> str:
        """What the user says first."""
        return self.messages[0].content

    @property
    def answer(self) -> str:
        """What the assistant says first."""
        return next(one.content for one in self.messages if one.role == "assistant")


def exchanges(parts: Sequence[Part]) -> list[Part]:
    """Every question of the user in the parts with what follows it, in order; `start` is that of
    its part."""
    result = []
    for part in parts:
        cuts = [i for i, one in enumerate(part.messages) if one.role == "user"]
        for low, high in zip(cuts, [*cuts[1:], len(part.messages)], strict=True):
            result.append(Part(part.messages[low:high], part.start))
    return result


def first_words(text: str, count: int) -> str:
    """The beginning of a text, up to its word number `count`."""
    words = text.split(None, count)
    if len(words) <= count:
        return text.strip()
    return text[: len(text) - len(words[-1])].strip()


class BackReferences:
    """Draws questions on the parts of one conversation."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._beginning = _BEGINNING[int(rng.integers(len(_BEGINNING)))]

    def draw(self, parts: Sequence[Part], total: int) -> Pair | None:
        """A question on a part in the first half of `total` tokens, with its answer. None where no
        part can be named by its first words alone."""
        named = [i for i in self._named(parts) if 2 * parts[i].start <= total]
        if not named:
            return None
        at = int(self._rng.choice(named))
        kind = int(self._rng.integers(3))
        if kind == 1 and self._is_short(parts[at]):
            quote = self._quote(parts[at].answer)
            answers = [self._quote(part.answer) for part in parts]
            if answers.count(quote) == 1:
                return self._pair(_QUESTION, quote, f'You asked: "{parts[at].question}"')
        if kind == 2 and at + 1 < len(parts) and self._is_short(parts[at + 1]):
            answer = f'You asked: "{parts[at + 1].question}"'
            return self._pair(_NEXT, self._quote(parts[at].question), answer)
        words = min(len(parts[at].answer.split()), int(self._rng.integers(8, 33)))
        return self.beginning(parts[at], words)

    def longest(self, parts: Sequence[Part], used: Sequence[Part] = ()) -> Part | None:
        """Of the first half of the parts that can be named, and that are not `used`, the one with
        the longest answer; of all of them where the first half has none."""
        named = [i for i in self._named(parts) if parts[i] not in used]
        early = [i for i in named if 2 * i < len(parts)] or named
        return max((parts[i] for i in early), key=lambda p: len(p.answer.split()), default=None)

    def beginning(self, part: Part, words: int) -> Pair:
        """The question for the first `words` words of a part's answer, and these; always in the
        same form."""
        quote, answer = self._quote(part.question), first_words(part.answer, words)
        return self._pair((self._beginning,), quote, answer, words=str(words))

    @staticmethod
    def smallest(part: Part) -> Pair:
        """A question for the first 4 words of an answer in a part, in the longest form that
        `beginning` may have: as long as the shortest question on any of its answers, or longer."""
        form = max(_BEGINNING, key=len)
        pairs = (
            (
                form.format(quote=first_words(one.question, QUOTE), words=4),
                first_words(one.answer, 4),
            )
            for one in exchanges([part])
        )
        question, answer = max(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
        return Message("user", question), Message("assistant", answer)

    def _pair(self, texts: Sequence[str], quote: str, answer: str, **values: str) -> Pair:
        text = texts[int(self._rng.integers(len(texts)))]
        question = text.format(quote=quote, **values)
        return Message("user", question), Message("assistant", answer)

    def _named(self, parts: Sequence[Part]) -> list[int]:
        """Parts, by number, whose first question begins as no other's does."""
        quotes = [self._quote(part.question) for part in parts]
        times = Counter(quotes)
        return [i for i, quote in enumerate(quotes) if times[quote] == 1]

    @staticmethod
    def _quote(text: str) -> str:
        return first_words(text, QUOTE)

    @staticmethod
    def _is_short(part: Part) -> bool:
        return len(part.question.split()) <= _LONGEST
