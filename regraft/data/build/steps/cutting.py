"""Cuts of a text after some tokens: at the end of a paragraph, a line, a sentence or a word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from regraft.data.build.tokens import Counter

_WINDOW = 0.25  # share of a piece, at its end, in which a boundary is looked for
# the best first; the cut is after the match
_BOUNDARIES = (
    re.compile(r"\n[ \t]*\n+"),
    re.compile(r"\n"),
    re.compile(r"[.!?]['\")\]]*\s+|[\u3002\uff01\uff1f]"),
    re.compile(r"\s+"),
)


class Cutter:
    """Cuts texts into pieces of at most a number of tokens, as `counter` counts them."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def pieces(self, text: str, limit: int) -> Iterator[tuple[str, int]]:
        """(piece, tokens) of at most `limit` tokens each; together they are the text, without the
        space around cuts."""
        start = skip_space(text, 0)
        while start < len(text):
            stop = self.end(text, start, limit)
            piece = text[start:stop].rstrip()
            yield piece, self._counter.lengths([piece])[0]
            start = skip_space(text, stop)

    def end(self, text: str, start: int, limit: int) -> int:
        """Where a piece that begins at character `start` ends, so that it has at most `limit`
        tokens; one of a few tokens may have more, because it holds at least a character."""
        room = limit - self._counter.special
        while True:
            head = text[start : start + _characters(limit)]
            ends = self._counter.ends(head)
            at = int(ends[max(0, room - 1)]) if len(ends) > room else len(head)
            stop = boundary(text, start, start + at)
            (tokens,) = self._counter.lengths([text[start:stop]])
            if tokens <= limit or room <= 1:
                return stop
            room -= max(1, tokens - limit)


def boundary(text: str, start: int, limit: int) -> int:
    """Where to end a piece of a text that begins at character `start`, at most at `limit`.

    After the last paragraph, line, sentence or word that ends in the last quarter before `limit`,
    of these the first that there is. Where there is none, after the last word before it; in a text
    without spaces between two characters that do not combine."""
    if limit >= len(text):
        return len(text)
    first = limit - int((limit - start) * _WINDOW)
    for pattern in _BOUNDARIES:
        last = 0
        for match in pattern.finditer(text, first, limit + 1):
            last = min(match.end(), limit)
        if last > first:
            return last
    at = max(text.rfind(" ", start, limit + 1), text.rfind("\n", start, limit + 1))
    if at > start:
        return at
    at = max(limit, start + 1)
    while at > start + 1 and at < len(text) and _combines(text, at):
        at -= 1
    return at


def _combines(text: str, at: int) -> bool:
    """Whether the characters before and at `at` are one to a reader."""
    joiner = "\u200d"
    return (
        bool(unicodedata.combining(text[at]))
        or text[at] in f"{joiner}\ufe0f"
        or (text[at - 1] == joiner)
    )


def skip_space(text: str, at: int) -> int:
    """The first character from `at` on that is no space, or the text's end."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _characters(tokens: int) -> int:
    """Characters that surely hold `tokens` tokens, unless these are very long."""
    return 16 * tokens + 256
