"""A needle that shares no word with its question: who lives in France, if someone has a flat by the
Eiffel Tower?

NoLiMa (arXiv 2502.05167) showed that models which find a needle by its words often fail to find it
by its meaning. The associations here are our own. Decoys name sights of other countries; the twin
has only such.
"""

from __future__ import annotations

import re

from regraft.data.generate import words
from regraft.data.generate.hiding import hide
from regraft.evaluate.tasks import Draft, ItemDetails, Kit, Task

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
_MOST = (len(SIGHTS) - _OTHERS) // 2  # questions about a text, each with a spare sight for its twin


def _make(kit: Kit, budget: int, number: int) -> Draft:
    return _make_group(kit, budget, number, 1)[0]


def _make_group(kit: Kit, budget: int, text: int, questions: int) -> list[Draft]:
    rng = kit.rng("latent", text)
    questions = min(questions, _MOST)
    sights = rng.sample(list(SIGHTS), 2 * questions + _OTHERS)
    names: list[str] = []
    while len(names) < len(sights):
        name = words.made_up(rng).capitalize()
        if name not in names and len(name) > 4:
            names.append(name)
    first = text * questions
    grid = [kit.depths[at % len(kit.depths)] for at in range(first, first + questions)]
    depths = [*grid, *(rng.random() for _ in range(_OTHERS))]
    needles = [
        _NEEDLE.format(name=name, sight=sight) + kit.haystack.ending
        for name, sight in zip(names, sights, strict=True)
    ]
    evidence, replaced = needles[:questions], needles[questions : 2 * questions]
    decoys = needles[2 * questions :]
    endings = [
        (
            f"\n\nQuestion: who, of all people named above, lives in {SIGHTS[sight]}?",
            f"\nAnswer: the one who lives in {SIGHTS[sight]} is",
        )
        for sight in sights[:questions]
    ]

    def build(units: int, hidden: list[str] = evidence) -> str:
        pieces = kit.haystack.pieces(f"latent {text}", units)
        return hide(pieces, [*hidden, *decoys], depths).rstrip()

    units = kit.fit_text("latent", build, budget, endings)
    whole, twin = build(units), build(units, replaced)
    present = [*names[:questions], *names[2 * questions :]]
    return [
        Draft(
            whole + question,
            twin + question,
            (name,),
            prefix,
            (name, *(other for other in present if other != name)),
            ItemDetails(depth=depth),
        )
        for name, depth, (question, prefix) in zip(names, grid, endings, strict=False)
    ]


def _solve(prompt: str) -> list[str]:
    country = _QUESTION_PATTERN.findall(prompt)[-1]
    return [name for name, sight in _NEEDLE_PATTERN.findall(prompt) if SIGHTS[sight] == country]


LATENT = Task("latent", _make, _solve, answer_tokens=16, make_group=_make_group)
