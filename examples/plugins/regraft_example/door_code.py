"""The task `example_door_code`: a long text states a number, and its end asks for it.

The twin states the code of a window instead, so a right answer to it is a guess.
"""

from __future__ import annotations

import re

from regraft.data.generate.hiding import hide
from regraft.evaluate.tasks import Draft, Kit, Task

_QUESTION = "\n\nQuestion: what is the code of the door?"
_PREFIX = "\nAnswer: the code of the door is"


def _make(kit: Kit, budget: int, number: int) -> Draft:
    rng = kit.rng("example_door_code", number)
    depth, (right, wrong) = rng.random(), rng.sample(range(10**6, 10**7), 2)

    def build(units: int, thing: str = "door", code: int = right) -> str:
        pieces = kit.haystack.pieces(f"door {number}", units)
        evidence = f"The code of the {thing} is {code}.{kit.haystack.ending}"
        return hide(pieces, [evidence], [depth]).rstrip() + _QUESTION

    units = kit.fit("example_door_code", build, budget, _PREFIX)
    return Draft(build(units), build(units, "window", wrong), (str(right),), _PREFIX)


def _solve(prompt: str) -> list[str]:
    return re.findall(r"The code of the door is (\d+)\.", prompt)


DOOR_CODE = Task("example_door_code", _make, _solve, answer_tokens=16)
