"""The needle grid: lengths x depths, one or several needles, decoys of the same form.

After Kamradt's needle in a haystack, with numbers of seven digits instead of an anecdote, so that
answers cannot be guessed. The haystack is never repeated. A decoy's key shares a word with the
requested key, so that finding something that looks like a needle is not enough.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from regraft.data.generate import words
from regraft.data.generate.hiding import hide
from regraft.evaluate.tasks import Draft, ItemDetails, Kit, Task

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
    return _make_group(kit, budget, number, 1)[0]


def _make_group(kit: Kit, budget: int, text: int, questions: int) -> list[Draft]:
    """Each question has needles, decoys, a depth and, in the twin, a spare key of its own."""
    rng = kit.rng("needle", text)
    count, ending = kit.needles, kit.haystack.ending
    taken: set[str] = set()
    names = words.distinct(rng, "words", 2 * questions, taken)
    keys, spares = names[:questions], names[questions:]
    similar = [_similar_key(rng, key, taken) for key in keys for _ in range(kit.decoys)]
    values = words.distinct(rng, "numbers", 2 * count * questions + len(similar), taken)
    first = text * questions
    grid = [kit.depths[at % len(kit.depths)] for at in range(first, first + questions)]
    # several needles are spaced evenly from the cell's depth to the end, as Kamradt's are
    depths = [depth + (1 - depth) * i / count for depth in grid for i in range(count)]
    depths += [rng.random() for _ in similar]

    def needles(of: Sequence[str], numbers: Sequence[str]) -> list[str]:
        repeated = [key for key in of for _ in range(len(numbers) // len(of))]
        return [
            _NEEDLE.format(key=key, value=value) + ending
            for key, value in zip(repeated, numbers, strict=True)
        ]

    own, others = values[: count * questions], values[count * questions : 2 * count * questions]
    hidden, replaced = needles(keys, own), needles(spares, others)
    decoys = needles(similar, values[2 * count * questions :]) if similar else []
    named = _NAMES["one" if count == 1 else "several"]
    endings = [
        (_QUESTION.format(key=key, **named), _PREFIX.format(key=key, **named)) for key in keys
    ]

    def build(units: int, evidence: list[str] = hidden) -> str:
        pieces = kit.haystack.pieces(f"needle {text}", units)
        return hide(pieces, [*evidence, *decoys], depths).rstrip()

    units = kit.fit_text("needle", build, budget, endings)
    whole, twin = build(units), build(units, replaced)
    return [
        Draft(
            whole + question,
            twin + question,
            tuple(own[count * number : count * (number + 1)]),
            prefix,
            details=ItemDetails(depth=grid[number]),
        )
        for number, (question, prefix) in enumerate(endings)
    ]


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


NEEDLE = Task("needle", _make, solve, answer_tokens=answer_tokens(1), make_group=_make_group)
