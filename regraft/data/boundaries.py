"""Where a text may be cut: between sentences, or near a given place."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

_CLOSING = r"[\"'\u201d\u2019)]"
# a stop that ends no sentence: before a letter, or in the quotation of "Go!" she said
_INNER_STOP = rf"[.!?](?!\s|{_CLOSING}+\s+(?![a-z\s]))"
_SENTENCE = re.compile(rf"(?:[^.!?\n]|{_INNER_STOP})*(?:[.!?]{_CLOSING}*\s+|\n\s*|$)")
_LONGEST = 400  # characters of a piece, about
_STRETCH = re.compile(rf".{{1,{_LONGEST}}}(?:\s+|$)|.{{{_LONGEST}}}", re.DOTALL)


def split(text: str) -> list[str]:
    """Sentences, each with the space or line end behind it; their concatenation is the text.

    Quotation marks and brackets that close behind a stop belong to its sentence, which goes on
    where a small letter follows them ('"Go!" she said.'). Very long sentences, as in scripts
    without a full stop, are split between words or, without spaces, anywhere."""
    return [text[low:high] for low, high in pairwise(chain([0], _ends(text)))]


def sentence_ends(text: str) -> NDArray[np.int64]:
    """Where each sentence of `split` ends, in characters: 8 bytes a sentence."""
    return np.fromiter(_ends(text), np.int64)


def _ends(text: str) -> Iterator[int]:
    for sentence in _SENTENCE.finditer(text):
        start, end = sentence.span()
        if end - start > _LONGEST:
            yield from (part.end() for part in _STRETCH.finditer(text, start, end))
        elif end > start:
            yield end


def pieces_at(text: str, places: Sequence[int]) -> list[str]:
    """The text cut about at `places` (characters, ascending): each cut is moved to the nearest end
    of a sentence. Their concatenation is the text; a piece that would be empty is left out."""
    ends = [0, *_ends(text)]
    cuts = {0, len(text)}
    for place in places:
        after = bisect_left(ends, place)
        near = min(ends[max(0, after - 1) : after + 1], key=lambda end: abs(end - place))
        cuts.add(_before_character(text, near))
    return [text[low:high] for low, high in pairwise(sorted(cuts)) if high > low]


def _before_character(text: str, at: int) -> int:
    """`at`, moved to the beginning of what is read as one character: before marks and joiners."""
    while 0 < at < len(text) and (_joins(text[at]) or text[at - 1] == "\u200d"):
        at -= 1
    return at


def _joins(character: str) -> bool:
    return character == "\u200d" or unicodedata.category(character) in ("Mn", "Me", "Mc")
