"""Token ids of texts that share most of their sentences: each sentence is tokenized once.

A prompt is tokenized often: while its length is fitted, for each question about its text, and with
its answer; its twin differs in a sentence. So a text is cut at places where tokens end whatever
else it contains, and the ids of the pieces are cached. The places are before a single space that
follows punctuation, and after a single line feed that follows a visible character, each before a
letter, all of ASCII. The pre-tokenizers of Llama 3, SmolLM and GPT-2 never join the two sides, and
split each as they would split it alone. A text for another tokenizer is one piece.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Sequence
from typing import Any

from regraft.checkpoint.hf.pre_tokenizer import GPT2, LLAMA3, SMOLLM, steps

# The character comes first, since it is found faster than what may stand around it.
_SPACE = re.compile(r" (?<=[.!?:;\"')] )(?=[A-Za-z])")
_LINE_FEED = re.compile(r"\n(?<=[!-~]\n)(?=[A-Za-z])")
_CACHED = 1 << 22  # tokens of pieces, about 16 bytes each with text and dict
Offsets = list[tuple[int, int]]


class PieceEncoder:
    """Encodes texts by their pieces, which are cached. tokenizer: a fast transformers tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, array[int]] = {}
        self._room = _CACHED
        self._first: list[int] = []  # special tokens before and after a text
        self._last: list[int] = []
        self._cuts = _can_cut(tokenizer) and self._find_special()

    def ids(self, text: str, special: bool) -> list[int]:
        """Token ids. special: with the tokenizer's special tokens."""
        pieces = self._split(text)
        if len(pieces) == 1:
            return list(self._encode(text, special)["input_ids"])
        first, last = (self._first, self._last) if special else ([], [])
        return [*first, *self._join(pieces), *last]

    def ids_and_offsets(self, text: str, end: int, special: bool) -> tuple[list[int], int, Offsets]:
        """(`ids`, number of a token, (start, end) in `text` of this and all later tokens).

        The token begins before the last `end` characters of the text."""
        pieces, rest = self._split(text), ""
        while pieces and len(rest) <= end:
            rest = pieces.pop() + rest
        encoding = self._encode(rest, special, return_offsets_mapping=True)
        ids, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
        if not pieces:
            return ids, 0, offsets
        first, start = self._first if special else [], len(text) - len(rest)
        before = [*first, *self._join(pieces)]
        moved = [(low + start, high + start) for low, high in offsets[len(first) :]]
        return [*before, *ids[len(first) :]], len(before), moved

    def _split(self, text: str) -> list[str]:
        if not self._cuts:
            return [text]
        *lines, last = _LINE_FEED.split(text)
        pieces: list[str] = []
        for line in (*(line + "\n" for line in lines), last):
            first, *others = _SPACE.split(line)
            pieces += [first, *(" " + other for other in others)]
        return pieces

    def _join(self, pieces: Sequence[str]) -> array[int]:
        known = self._ids
        missing = [piece for piece in dict.fromkeys(pieces) if piece not in known]
        if missing:
            if self._room < 0:
                known.clear()
                self._room, missing = _CACHED, list(dict.fromkeys(pieces))
            for piece, ids in zip(missing, self._encode(missing, False)["input_ids"], strict=True):
                known[piece] = array("i", ids)
                self._room -= len(ids)
        result = array("i")
        for piece in pieces:
            result += known[piece]
        return result

    def _encode(self, text: str | list[str], special: bool, **more: Any) -> Any:
        return self._tokenizer(text, add_special_tokens=special, verbose=False, **more)

    def _find_special(self) -> bool:
        """Whether the special tokens around a text are known."""
        encoding = self._encode("a", True, return_special_tokens_mask=True)
        ids, special = list(encoding["input_ids"]), list(encoding["special_tokens_mask"])
        if 0 not in special:
            return False
        self._first = ids[: special.index(0)]
        self._last = ids[len(ids) - special[::-1].index(0) :]
        return True


def _can_cut(tokenizer: Any) -> bool:
    """Whether the ids of the pieces of a text are those of the text."""
    core = tokenizer.backend_tokenizer
    if core.pre_tokenizer is None or core.normalizer is not None:
        return False
    if steps(json.loads(core.pre_tokenizer.__getstate__())) not in (LLAMA3, SMOLLM, GPT2):
        return False
    return not any(  # added tokens are found before a text is split
        token.lstrip or token.rstrip or token.single_word or re.search(r"\s", token.content)
        for token in tokenizer.added_tokens_decoder.values()
    )
