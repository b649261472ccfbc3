"""RULER's eight needle tasks and variable tracking, from its published parameters.

RULER: What's the Real Context Size of Your Long-Context Language Models? (arXiv 2404.06654). Kept:
kinds of haystack, key and value, numbers of keys, values and queries, depths from 40 grid points,
room for the answer, scorers, length fitting. Ours: the wording, the words, and the haystack, which
is never repeated; so scores are comparable between models here, not with a published table.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import partial
from typing import Literal

from regraft.evaluate.prompts import words
from regraft.evaluate.tasks import Draft, Kit, Task, listing
from regraft.evaluate.tasks.hiding import hide, linear_depths, random_depths

NOISE = "Rain falls at night. The wind turns east. Leaves drift by. On we walk. Home is far away.\n"
_NEEDLE = "The special {kind} assigned to {key} is {value}."
_READ = re.compile(r"The special \w+ assigned to (\S+) is (\S+)\.")
_ASKED = re.compile(r"Which special \w+ (?:is|are) assigned to (.+) in the text above\?")


@dataclass(frozen=True)
class Needles:
    """Parameters of a needle task as RULER names them: types of haystack, key and value, and how
    many keys, values of each, and queries."""

    haystack: Literal["noise", "essay", "needle"] = "essay"
    key: words.Kind = "words"
    value: words.Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLE_TASKS = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles(),
    "niah_single_3": Needles(value="uuids"),
    "niah_multikey_1": Needles(keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", key="uuids", value="uuids"),
    "niah_multivalue": Needles(values=4),
    "niah_multiquery": Needles(keys=4, queries=4),
}
CHAINS, HOPS = 1, 4


def _needles(name: str, spec: Needles, kit: Kit, budget: int, number: int) -> Draft:
    rng = kit.rng(name, budget, number)
    taken: set[str] = set()
    keys = words.distinct(rng, spec.key, spec.keys + spec.queries, taken)
    spare, keys = keys[spec.keys :], keys[: spec.keys]
    asked = keys[: spec.queries]
    values = {key: words.distinct(rng, spec.value, spec.values, taken) for key in (*keys, *spare)}
    told = [(key, value) for key in keys for value in values[key]]
    blind = dict(zip(asked, spare, strict=True))
    unseen = [
        (blind[key], values[blind[key]][values[key].index(value)]) if key in blind
        else (key, value)
        for key, value in told
    ]  # fmt: skip
    order = rng.sample(range(len(told)), len(told))
    depths = [0.0] * len(told)
    drawn = random_depths(rng, len(told))
    for rank, which in enumerate(order):
        depths[which] = drawn[rank]
    kind = {"numbers": "number", "uuids": "uuid", "words": "word"}[spec.value]
    ending = kit.haystack.ending if spec.haystack == "essay" else "\n"
    several = spec.values * spec.queries > 1
    query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    verb, kinds = ("are", f"{kind}s") if several else ("is", kind)
    lead = (
        f"{'Some special ' + kinds if several else 'A special ' + kind} can be found in the text "
        "below. Remember what you read; a question follows it.\n"
    )
    ask = f"\nWhich special {kinds} {verb} assigned to {query} in the text above?"
    prefix = f" The special {kinds} assigned to {query} in the text above {verb}"
    seed = f"{name} {budget} {number}"
    more = kit.rng(seed, "haystack")
    strangers: list[str] = []

    def build(units: int, notes: list[tuple[str, str]] = told) -> str:
        if spec.haystack == "essay":
            pieces = kit.haystack.pieces(seed, units)
        elif spec.haystack == "noise":
            pieces = [NOISE] * units
        else:
            while len(strangers) < units:
                (key,) = words.distinct(more, spec.key, 1, taken)
                (value,) = words.distinct(more, spec.value, 1, taken)
                strangers.append(_NEEDLE.format(kind=kind, key=key, value=value) + "\n")
            pieces = strangers[:units]
        hidden = [_NEEDLE.format(kind=kind, key=k, value=v) + ending for k, v in notes]
        return lead + hide(pieces, hidden, depths).rstrip() + ask

    units = kit.fit(name, build, budget, prefix)
    at = dict(zip(told, depths, strict=True))
    told_in_order = sorted(told, key=at.__getitem__)
    references = tuple(value for key in asked for name, value in told_in_order if name == key)
    facts = {"depth": at[asked[0], values[asked[0]][0]]} if len(told) == 1 else {}
    return Draft(build(units), build(units, unseen), references, prefix, facts=facts)


def _solve_needles(prompt: str) -> list[str]:
    asked = _ASKED.findall(prompt)
    if not asked:
        return []
    keys = re.split(r",? and |, ", asked[-1])
    notes = _READ.findall(prompt)
    return [value for key in keys for name, value in notes if name == key]


_ASSIGN = re.compile(r"VAR ([A-Z]{5}) = (?:VAR ([A-Z]{5})|(\d+))")
_TRACKED = re.compile(r"Which variables hold the value (\d+) in the text above\?")


def _chain(names: list[str], value: str) -> list[str]:
    sources = [value, *(f"VAR {name}" for name in names)]
    return [f"VAR {name} = {source}\n" for name, source in zip(names, sources, strict=False)]


def _tracking(kit: Kit, budget: int, number: int) -> Draft:
    rng = kit.rng("vt", budget, number)
    names = _variables(rng, 3 * CHAINS * (HOPS + 1))
    shown, told, other = (names[i : i + HOPS + 1] for i in range(0, len(names), HOPS + 1))
    numbers = [str(n) for n in rng.sample(range(10_000, 100_000), 3)]
    example = _tracking_question(
        [NOISE] * 5, _chain(shown, numbers[0]), linear_depths(HOPS + 1), numbers[0]
    )
    example += f"{_tracking_prefix(numbers[0])}{listing(shown)[0]}.\n\n"
    depths = random_depths(rng, HOPS + 1)
    prefix = _tracking_prefix(numbers[1])

    def build(units: int, chain: list[str]) -> str:
        return example + _tracking_question([NOISE] * units, chain, depths, numbers[1])

    chain, blind = _chain(told, numbers[1]), _chain(other, numbers[2])
    units = kit.fit("vt", lambda units: build(units, chain), budget, prefix)
    return Draft(build(units, chain), build(units, blind), tuple(told), prefix)


def _variables(rng: random.Random, count: int) -> list[str]:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names: list[str] = []
    while len(names) < count:
        name = "".join(rng.sample(letters, 5))
        if name not in names:
            names.append(name)
    return names


def _tracking_question(pieces: list[str], chain: list[str], depths: list[float], value: str) -> str:
    return (
        "Variables are assigned in the text below. Follow the assignments.\n\n"
        f"{hide(pieces, chain, depths)}"
        f"Question: Which variables hold the value {value} in the text above?"
    )


def _tracking_prefix(value: str) -> str:
    return f" Answer: {CHAINS * (HOPS + 1)} variables hold the value {value}:"


def _solve_tracking(prompt: str) -> list[str]:
    asked = _TRACKED.findall(prompt)[-1]
    values: dict[str, str] = {}
    for name, source, number in _ASSIGN.findall(prompt):
        values[name] = number or values[source]
    return [name for name, value in values.items() if value == asked]


NEEDLES = [
    Task(
        name, partial(_needles, name, spec), _solve_needles, room=128,
        haystack=spec.haystack == "essay",
    )
    for name, spec in NEEDLE_TASKS.items()
]  # fmt: skip
TRACKING = Task("vt", _tracking, _solve_tracking, room=30, haystack=False)
