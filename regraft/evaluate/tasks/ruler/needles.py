"""RULER's eight needle tasks: keys and values hidden in an essay, in noise, or among other needles.

Needles stand at grid depths in essays and at any line of noise and of needle haystacks. Which
needle takes which position is the same in every item (NVIDIA shuffles them with a fixed seed),
while the queried keys are drawn anew.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import partial
from typing import Literal

from regraft.data.generate import words
from regraft.evaluate.tasks import Draft, ItemDetails, Kit, Task
from regraft.evaluate.tasks.ruler.placement import grid_positions, insert, line_positions

NOISE = "Rain falls at night. The wind turns east. Leaves drift by. On we walk. Home is far away.\n"
_ORDER_SEED = 42
_NEEDLE = "The special {kind} assigned to {key} is {value}."
_NEEDLE_PATTERN = re.compile(r"The special \w+ assigned to (\S+) is (\S+)\.")
_QUESTION_PATTERN = re.compile(r"Which special \w+ (?:is|are) assigned to (.+) in the text above\?")
_KINDS = {"numbers": "number", "uuids": "uuid", "words": "word"}
Needle = tuple[str, str]  # key, value


@dataclass(frozen=True)
class NeedleSpec:
    """Parameters of a needle task as RULER names them: types of haystack, key and value, and how
    many keys, values of each key, and queried keys."""

    haystack: Literal["noise", "essay", "needle"] = "essay"
    key: words.Kind = "words"
    value: words.Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


SPECS = {
    "niah_single_1": NeedleSpec("noise"),
    "niah_single_2": NeedleSpec(),
    "niah_single_3": NeedleSpec(value="uuids"),
    "niah_multikey_1": NeedleSpec(keys=4),
    "niah_multikey_2": NeedleSpec("needle"),
    "niah_multikey_3": NeedleSpec("needle", key="uuids", value="uuids"),
    "niah_multivalue": NeedleSpec(values=4),
    "niah_multiquery": NeedleSpec(keys=4, queries=4),
}


def _make(name: str, spec: NeedleSpec, kit: Kit, budget: int, number: int) -> Draft:
    rng = kit.rng(name, budget, number)
    taken: set[str] = set()
    keys = words.distinct(rng, spec.key, spec.keys, taken)
    values = {key: words.distinct(rng, spec.value, spec.values, taken) for key in keys}
    needles = [(key, value) for key in keys for value in values[key]]
    random.Random(_ORDER_SEED).shuffle(needles)
    queried = rng.sample(keys, spec.queries)
    other_keys = words.distinct(rng, spec.key, spec.queries, taken)
    twin_needles = _replace(rng, spec, needles, dict(zip(queried, other_keys, strict=True)), taken)
    seed = f"{name} {budget} {number}"
    more = kit.rng(seed, "haystack")
    other_needles: list[str] = []

    def haystack(units: int) -> list[str]:
        if spec.haystack == "essay":
            return kit.haystack.pieces(seed, units)
        if spec.haystack == "noise":
            return [NOISE] * units
        while len(other_needles) < units:
            (key,) = words.distinct(more, spec.key, 1, taken)
            (value,) = words.distinct(more, spec.value, 1, taken)
            other_needles.append(_sentence(spec, (key, value)) + "\n")
        return other_needles[:units]

    def positions(units: int) -> list[int]:
        """Pieces before each needle; in an essay the depths do not depend on `units`."""
        if spec.haystack == "essay":
            return grid_positions(kit.rng(seed, "depths"), units, len(needles))
        return line_positions(kit.rng(seed, "lines", units), units, len(needles))

    lead, question, prefix = _wording(spec, queried)
    ending = kit.haystack.ending if spec.haystack == "essay" else "\n"

    def build(units: int, hidden: list[Needle] = needles) -> str:
        sentences = [_sentence(spec, needle) + ending for needle in hidden]
        return lead + insert(haystack(units), sentences, positions(units)).rstrip() + question

    least = 0 if spec.haystack == "essay" else len(needles)
    units = kit.fit(name, build, budget, prefix, least=least)
    references = tuple(value for query in queried for key, value in needles if key == query)
    depth = positions(units)[0] / max(1, units) if len(needles) == 1 else None
    return Draft(
        build(units),
        build(units, twin_needles),
        references,
        prefix,
        details=ItemDetails(depth=depth),
    )


def _replace(
    rng: random.Random, spec: NeedleSpec, needles: list[Needle], other_key: dict[str, str],
    taken: set[str],
) -> list[Needle]:  # fmt: skip
    """The needles with other keys and values in place of the queried ones."""
    return [
        (other_key[key], words.distinct(rng, spec.value, 1, taken)[0])
        if key in other_key
        else (key, value)
        for key, value in needles
    ]


def _sentence(spec: NeedleSpec, needle: Needle) -> str:
    return _NEEDLE.format(kind=_KINDS[spec.value], key=needle[0], value=needle[1])


def _wording(spec: NeedleSpec, queried: list[str]) -> tuple[str, str, str]:
    """(the text before the haystack, the question after it, the beginning of the answer)."""
    several = spec.values * spec.queries > 1
    kind = _KINDS[spec.value]
    verb, kinds = ("are", f"{kind}s") if several else ("is", kind)
    query = queried[0]
    if len(queried) > 1:
        query = f"{', '.join(queried[:-1])}, and {queried[-1]}"
    return (
        f"{'Some special ' + kinds if several else 'A special ' + kind} can be found in the text "
        "below. Remember what you read; a question follows it.\n",
        f"\nWhich special {kinds} {verb} assigned to {query} in the text above?",
        f" The special {kinds} assigned to {query} in the text above {verb}",
    )


def _solve(prompt: str) -> list[str]:
    queries = _QUESTION_PATTERN.findall(prompt)
    if not queries:
        return []
    needles = _NEEDLE_PATTERN.findall(prompt)
    return [
        value
        for query in re.split(r",? and |, ", queries[-1])
        for key, value in needles
        if key == query
    ]


NEEDLES = [
    Task(
        name, partial(_make, name, spec), _solve, answer_tokens=128,
        haystack=spec.haystack == "essay",
    )
    for name, spec in SPECS.items()
]  # fmt: skip
