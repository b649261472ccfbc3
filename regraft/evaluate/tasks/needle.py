"""The needle grid: lengths x depths, one or several needles, decoys of the same form.

After Kamradt's needle in a haystack, with numbers of seven digits instead of an anecdote, so that
answers cannot be guessed. The haystack is never repeated. A decoy's key shares a word with the
requested key, so that finding something that looks like a needle is not enough.
"""

from __future__ import annotations

import random
import re

from regraft.evaluate.prompts import words
from regraft.evaluate.tasks import Draft, ItemDetails, Kit, Task
from regraft.evaluate.tasks.hiding import hide

_NEEDLE = "The secret number of the {key} is {value}."
_QUESTION = "\n\nQuestion: what {are} the secret {numbers} of the {key}, as told in the text above?"
_PREFIX = "\nAnswer: the secret {numbers} of the {key} {are}"
_NEEDLE_PATTERN = re.compile(r"The secret number of the (\S+) is (\d+)\.")
_QUESTION_PATTERN = re.compile(r"Question: what \w+ the secret numbers? of the (\S+), as told")
_NAMES = {
    "one": {"are": "is", "numbers": "number"},
    "several": {"are": "are", "numbers": "numbers"},
}


def _make(kit: Kit, budget: int, number: int) -> Draft:
    depth = kit.depths[number % len(kit.depths)]
    rng = kit.rng("needle", number)
    count = kit.needles
    taken: set[str] = set()
    key, spare = words.distinct(rng, "words", 2, taken)
    similar = [_similar_key(rng, key, taken) for _ in range(kit.decoys)]
    values = words.distinct(rng, "numbers", 2 * count + kit.decoys, taken)
    # several needles are spaced evenly from the cell's depth to the end, as Kamradt's are
    depths = [depth + (1 - depth) * i / count for i in range(count)]
    depths += [rng.random() for _ in similar]
    ending = kit.haystack.ending
    hidden = [_NEEDLE.format(key=key, value=value) + ending for value in values[:count]]
    others = [
        _NEEDLE.format(key=spare, value=value) + ending for value in values[count : 2 * count]
    ]
    decoys = [
        _NEEDLE.format(key=other, value=value) + ending
        for other, value in zip(similar, values[2 * count :], strict=True)
    ]
    names = _NAMES["one" if count == 1 else "several"]
    question, prefix = _QUESTION.format(key=key, **names), _PREFIX.format(key=key, **names)
    name = f"needle {number}"

    def build(units: int, needles: list[str] = hidden) -> str:
        pieces = kit.haystack.pieces(name, units)
        return hide(pieces, [*needles, *decoys], depths).rstrip() + question

    units = kit.fit("needle", build, budget, prefix)
    return Draft(
        build(units),
        build(units, others),
        tuple(values[:count]),
        prefix,
        details=ItemDetails(depth=depth),
    )


def _similar_key(rng: random.Random, key: str, taken: set[str]) -> str:
    """A key that shares its first or its second word with `key`."""
    first, second = key.split("-", 1)
    while True:
        made = rng.choice(
            (f"{first}-{rng.choice(words.NOUNS)}", f"{rng.choice(words.ADJECTIVES)}-{second}")
        )
        if made not in taken:
            taken.add(made)
            return made


def solve(prompt: str) -> list[str]:
    """The values of the key in the question."""
    queried = _QUESTION_PATTERN.findall(prompt)[-1:]
    return [value for key, value in _NEEDLE_PATTERN.findall(prompt) if key in queried]


def answer_tokens(needles: int) -> int:
    """Tokens for the answer, even if every digit is a token."""
    return 24 + 12 * (needles - 1)


NEEDLE = Task("needle", _make, solve, answer_tokens=answer_tokens(1))
