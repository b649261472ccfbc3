"""A needle that shares no word with its question: who lives in France, if someone has a flat by the
Eiffel Tower?

NoLiMa (arXiv 2502.05167) showed that models which find a needle by its words often fail to find it
by its meaning. The associations here are our own. Decoys name sights of other countries; the twin
has only such.
"""

from __future__ import annotations

import re

from regraft.evaluate.prompts import words
from regraft.evaluate.tasks import Draft, ItemDetails, Kit, Task
from regraft.evaluate.tasks.hiding import hide

SIGHTS = {
    "the Eiffel Tower": "France", "the Colosseum": "Italy", "the Taj Mahal": "India",
    "the Acropolis": "Greece", "Buckingham Palace": "England", "the Great Sphinx": "Egypt",
    "Machu Picchu": "Peru", "the Brandenburg Gate": "Germany", "the Alhambra": "Spain",
    "Mount Fuji": "Japan", "the Kremlin": "Russia", "Tivoli Gardens": "Denmark",
    "the Matterhorn": "Switzerland", "Angkor Wat": "Cambodia", "the ruins of Petra": "Jordan",
    "Sugarloaf Mountain": "Brazil",
}  # fmt: skip
_NEEDLE = "These days {name} has a flat right beside {sight}."
_NEEDLE_PATTERN = re.compile(r"These days (\S+) has a flat right beside ([^.]+)\.")
_QUESTION_PATTERN = re.compile(r"Question: who, of all people named above, lives in (\w+)\?")
_OTHERS = 3


def _make(kit: Kit, budget: int, number: int) -> Draft:
    rng = kit.rng("latent", number)
    sight, spare, *others = rng.sample(list(SIGHTS), 2 + _OTHERS)
    names: list[str] = []
    while len(names) < 2 + _OTHERS:
        name = words.made_up(rng).capitalize()
        if name not in names and len(name) > 4:
            names.append(name)
    depth = kit.depths[number % len(kit.depths)]
    depths = [depth, *(rng.random() for _ in others)]
    ending = kit.haystack.ending
    needle_text, twin_needle, *decoys = (
        _NEEDLE.format(name=name, sight=landmark) + ending
        for name, landmark in zip(names, (sight, spare, *others), strict=True)
    )
    question = f"\n\nQuestion: who, of all people named above, lives in {SIGHTS[sight]}?"
    prefix = f"\nAnswer: the one who lives in {SIGHTS[sight]} is"

    def build(units: int, needle: str = needle_text) -> str:
        pieces = kit.haystack.pieces(f"latent {number}", units)
        return hide(pieces, [needle, *decoys], depths).rstrip() + question

    units = kit.fit("latent", build, budget, prefix)
    candidates = (names[0], *names[2:])
    return Draft(
        build(units),
        build(units, twin_needle),
        (names[0],),
        prefix,
        candidates,
        ItemDetails(depth=depth),
    )


def _solve(prompt: str) -> list[str]:
    country = _QUESTION_PATTERN.findall(prompt)[-1]
    return [name for name, sight in _NEEDLE_PATTERN.findall(prompt) if SIGHTS[sight] == country]


LATENT = Task("latent", _make, _solve, answer_tokens=16)
