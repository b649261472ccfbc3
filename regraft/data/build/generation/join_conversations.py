"""Conversations joined to long ones of a given length, with questions on earlier parts.

Of the next conversations the first that fits is taken, until none fits with the smallest question
on any of them. The rest is filled by questions for the beginning of an earlier answer, the last of
which asks for as many words as there is room for. So one word more would be too long, unless the
answers are so short that all of them are asked for in full.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from regraft.data.build.document import Document, Message
from regraft.data.build.generation.back_reference import BackReferences, Part, exchanges
from regraft.data.build.generation.conversation_size import ConversationSize, text_of
from regraft.data.build.step import Context

_POOL = 64  # conversations from which the next one that fits is taken


@dataclass(frozen=True)
class _Candidate:
    """A conversation that waits to be joined. size: tokens that it adds; reserve: tokens of the
    smallest question on any of its answers."""

    id: str
    source: str
    messages: tuple[Message, ...]
    size: int
    reserve: int


@dataclass
class _Joined:
    """A conversation in the making. total: its tokens; reserve: tokens for a question at its end;
    starts, questions: numbers of the messages with which parts and questions on them begin."""

    total: int
    reserve: int = 0
    messages: list[Message] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    taken: list[_Candidate] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)


class Joiner:
    """Joins conversations to `length` tokens, with `references` questions evenly spread."""

    def __init__(
        self, length: int, references: int, documents: Iterator[Document], context: Context
    ) -> None:
        self._length, self._references, self._context = length, references, context
        self._sizes = ConversationSize(context.counter)
        self._candidates = self._measured(documents)
        self._pool: list[_Candidate] = []

    def run(self) -> Iterator[Document]:
        """The joined conversations. The last one is left out if it is not full."""
        statistics = self._context.statistics
        self._refill()
        while self._pool:
            draw = BackReferences(self._context.rng(self._pool[0].id))
            joined = self._join(draw)
            last = not self._pool
            if last and not self._can_be_filled(draw, joined):
                statistics.count("conversations of an unfinished one", len(joined.taken))
            else:
                self._fill(draw, joined)
                statistics.count("conversations made")
                yield self._document(joined)

    def _measured(self, documents: Iterator[Document]) -> Iterator[_Candidate]:
        """Conversations without their system messages; of a longer one as much as fits."""
        statistics = self._context.statistics
        for document in documents:
            assert document.messages is not None
            messages = tuple(one for one in document.messages if one.role != "system")
            if len(messages) < len(document.messages):
                statistics.count("system messages left out")
            whole = messages
            if not self._fits(messages, document.id):
                messages = self._cut(messages)
            if not messages:
                statistics.drop("an exchange longer than the length")
                continue
            if len(messages) < len(whole):
                statistics.count("conversations cut")
            size, reserve = self._added(messages, document.id)
            yield _Candidate(document.id, document.source, messages, size, reserve)

    def _added(self, messages: tuple[Message, ...], where: str) -> tuple[int, int]:
        """Tokens of a conversation, and of the smallest question on its answers."""
        smallest = BackReferences.smallest(Part(messages, 0))
        return self._sizes.added(messages, where), self._sizes.added(smallest)

    def _fits(self, messages: tuple[Message, ...], where: str) -> bool:
        """Whether a joined conversation has room for these and a question on them."""
        return self._sizes.start + sum(self._added(messages, where)) <= self._length

    def _cut(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """As many exchanges as fit."""
        starts = [i for i, one in enumerate(messages) if one.role == "user"][1:]
        fitting = bisect_left(
            starts, True, key=lambda stop: not self._fits(messages[:stop], "a conversation")
        )
        return messages[: starts[fitting - 1]] if fitting else ()

    def _refill(self) -> None:
        while len(self._pool) < _POOL and (one := next(self._candidates, None)) is not None:
            self._pool.append(one)

    def _join(self, draw: BackReferences) -> _Joined:
        """Conversations until none fits, and all questions but the last."""
        joined = _Joined(self._sizes.start)
        while (at := self._next(joined)) is not None:
            one = self._pool.pop(at)
            self._refill()
            joined.taken.append(one)
            joined.starts.append(len(joined.messages))
            joined.parts.append(Part(one.messages, joined.total))
            joined.messages += one.messages
            joined.total += one.size
            joined.reserve = max(joined.reserve, one.reserve)
            due = (len(joined.questions) + 1) * self._length <= joined.total * self._references
            if due and len(joined.questions) + 1 < self._references:
                self._ask(draw, joined)
        self._trim(joined)
        return joined

    def _next(self, joined: _Joined) -> int | None:
        """The first conversation that fits with a question on any; None if there is none."""
        room = self._length - joined.total
        for at, one in enumerate(self._pool):
            if one.size + max(joined.reserve, one.reserve) <= room:
                return at
        return None

    def _trim(self, joined: _Joined) -> None:
        """Count all tokens, since some span messages, and remove exchanges from the end while there
        is no room for a question."""
        starts = [i for i, one in enumerate(joined.messages) if one.role == "user"]
        joined.total = self._sizes.whole(joined.messages)
        while joined.total + joined.reserve > self._length and len(starts) > 1:
            del joined.messages[starts.pop() :]
            joined.total = self._sizes.whole(joined.messages)
        number = bisect_left(joined.starts, len(joined.messages))
        self._pool[:0] = joined.taken[number:]
        for values in (joined.parts, joined.taken, joined.starts):
            del values[number:]
        if len(joined.messages) < joined.starts[-1] + len(joined.parts[-1].messages):
            self._context.statistics.count("conversations cut")
        del joined.questions[bisect_left(joined.questions, len(joined.messages)) :]

    def _ask(self, draw: BackReferences, joined: _Joined) -> None:
        """Add a question on a part in the first half, if there is room."""
        pair = draw.draw(joined.parts, joined.total)
        if pair is None:
            return
        size = self._sizes.added(pair)
        if joined.total + size + joined.reserve <= self._length:
            joined.questions.append(len(joined.messages))
            joined.messages += pair
            joined.total += size

    def _can_be_filled(self, draw: BackReferences, joined: _Joined) -> bool:
        """Whether one question can fill the rest."""
        part = draw.longest(exchanges(joined.parts))
        if part is None:
            return False
        full = draw.beginning(part, len(part.answer.split()))
        return self._length - joined.total <= self._sizes.added(full)

    def _fill(self, draw: BackReferences, joined: _Joined) -> None:
        """Fill the rest with questions for the beginning of an answer."""
        parts, used = exchanges(joined.parts), list[Part]()
        part = draw.longest(parts)
        while part is not None and self._length - joined.total >= joined.reserve:
            used.append(part)
            following = draw.longest(parts, used)
            most, room = self._length, self._length - joined.total
            words = self._words(draw, part, room)
            if following is not None and words == len(part.answer.split()):
                fewer = self._words(draw, part, room - joined.reserve)
                if fewer:  # and another question after this one
                    words, most = fewer, self._length - joined.reserve
            while words:
                messages = [*joined.messages, *draw.beginning(part, words)]
                if (total := self._sizes.whole(messages)) <= most:
                    joined.questions.append(len(joined.messages))
                    joined.messages, joined.total = messages, total
                    break
                words -= 1
            part = following

    def _words(self, draw: BackReferences, part: Part, room: int) -> int:
        """The most words of a part's answer for which a question fits in `room` tokens."""
        least, most = 0, len(part.answer.split())
        while least < most:
            middle = (least + most + 1) // 2
            if self._sizes.added(draw.beginning(part, middle)) <= room:
                least = middle
            else:
                most = middle - 1
        return least

    def _document(self, joined: _Joined) -> Document:
        statistics, first = self._context.statistics, joined.taken[0]
        scores = {
            "chat.conversations": float(len(joined.taken)),
            "chat.references": float(len(joined.questions)),
        }
        for name, value in {**scores, "chat.missing": self._length - joined.total}.items():
            statistics.score(name, value)
        messages = tuple(joined.messages)
        return Document(
            text_of(messages), f"{first.id}#1", first.source, scores=scores,
            metadata={"chat": "joined"}, messages=messages, tokens=joined.total,
        )  # fmt: skip
