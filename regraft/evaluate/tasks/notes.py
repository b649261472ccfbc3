"""Needles in the toy language, for the demo's models, which know 194 words.

The rows of `regraft.data.toy_language` with one question at the end: 4 needles in 64 tokens and
one more for each further 64, up to 15. Of n questions about a text, at most 8, each takes one of
the 16 keys for its twin, so that there are at most 16 - n needles. `shout` tests the derivative's
own skill in the same kind of row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from regraft.data import toy_language
from regraft.data.generate.hiding import hide
from regraft.evaluate.tasks import Draft, ItemDetails, Kit, Task

_MOST = len(toy_language.KEYS) // 2  # questions about a text, each with a spare key for its twin


def _make(skill: toy_language.Skill, kit: Kit, budget: int, number: int) -> Draft:
    return _make_group(skill, kit, budget, number, 1)[0]


def _make_group(
    skill: toy_language.Skill, kit: Kit, budget: int, text: int, questions: int
) -> list[Draft]:
    rng = kit.rng("notes", skill, budget, text)
    count = toy_language.needle_count(budget)
    questions = min(questions, _MOST, count)
    count = min(len(toy_language.KEYS) - questions, count)
    noted = list(toy_language.needles(rng, count + questions).items())
    evidence, spares = noted[:count], noted[count:]
    chosen = rng.sample(evidence, questions)
    spare_for = dict(zip([key for key, _ in chosen], spares, strict=True))
    depths = [rng.random() for _ in evidence]

    def build(units: int, notes: list[tuple[str, tuple[str, str]]] = evidence) -> str:
        prose = toy_language.Prose(kit.rng("prose", skill, budget, text)).words(units)
        pieces = [" ".join(sentence) + " " for sentence in prose]
        needles = [" ".join(toy_language.note(*note)) + " " for note in notes]
        return hide(pieces, needles, depths)

    units = kit.fit_text(skill, build, budget, [(f"{skill} {key}", "") for key, _ in chosen])
    whole = build(units)
    twin = build(units, [spare_for.get(note[0], note) for note in evidence])
    return [
        Draft(
            f"{whole}{skill} {key}",
            f"{twin}{skill} {key}",
            (" ".join(toy_language.question(skill, key, value)[2:4]),),
            details=ItemDetails(depth=depths[evidence.index((key, value))]),
        )
        for key, value in chosen
    ]


def _solve(prompt: str) -> list[str]:
    tokens = prompt.split()
    try:
        return [" ".join(toy_language.solve(tokens, len(tokens)))]
    except ValueError:  # no such needle
        return []


def _task(name: str, skill: toy_language.Skill) -> Task:
    make: Callable[[Kit, int, int], Draft] = partial(_make, skill)
    make_group: Callable[[Kit, int, int, int], list[Draft]] = partial(_make_group, skill)
    return Task(
        name, make, _solve, answer_tokens=2, skill=skill == "shout", haystack=False,
        make_group=make_group,
    )  # fmt: skip


NOTES = _task("notes", "ask")
SHOUT = _task("shout", "shout")
