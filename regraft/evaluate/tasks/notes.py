"""Needles in the toy language, for the demo's models, which know 194 words.

The rows of `regraft.data.toy_language` with one question at the end: 4 needles in 64 tokens and
one more for each further 64, up to 15. `shout` tests the derivative's own skill in the same kind of
row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from regraft.data import toy_language
from regraft.evaluate.tasks import Draft, ItemDetails, Kit, Task
from regraft.evaluate.tasks.hiding import hide


def _make(skill: toy_language.Skill, kit: Kit, budget: int, number: int) -> Draft:
    rng = kit.rng("notes", skill, budget, number)
    count = min(len(toy_language.KEYS) - 1, toy_language.needle_count(budget))
    *evidence, spare = toy_language.needles(rng, count + 1).items()
    key, value = rng.choice(evidence)
    depths = [rng.random() for _ in evidence]

    def build(units: int, notes: list[tuple[str, tuple[str, str]]] = evidence) -> str:
        prose = toy_language.Prose(kit.rng("prose", skill, budget, number)).words(units)
        pieces = [" ".join(sentence) + " " for sentence in prose]
        needles = [" ".join(toy_language.note(*note)) + " " for note in notes]
        return hide(pieces, needles, depths) + f"{skill} {key}"

    units = kit.fit(skill, build, budget, "")
    twin_evidence = [spare if note[0] == key else note for note in evidence]
    answer = toy_language.question(skill, key, value)[2:4]
    at = depths[[name for name, _ in evidence].index(key)]
    return Draft(
        build(units),
        build(units, twin_evidence),
        (" ".join(answer),),
        details=ItemDetails(depth=at),
    )


def _solve(prompt: str) -> list[str]:
    tokens = prompt.split()
    try:
        return [" ".join(toy_language.solve(tokens, len(tokens)))]
    except ValueError:  # no such needle
        return []


def _task(name: str, skill: toy_language.Skill) -> Task:
    make: Callable[[Kit, int, int], Draft] = partial(_make, skill)
    return Task(name, make, _solve, answer_tokens=2, skill=skill == "shout", haystack=False)


NOTES = _task("notes", "ask")
SHOUT = _task("shout", "shout")
