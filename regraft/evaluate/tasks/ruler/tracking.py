"""RULER's variable tracking: one chain of five assignments in noise, after one solved example.

The example has variables of three letters and is itself filled to 500 tokens; where its chain
stands is the same in all items of a run, its names and its number are not. The chain stands at any
lines of the noise, in order.
"""

from __future__ import annotations

import random
import re
import string

from regraft.data.generate.fit import TooShort, fit
from regraft.evaluate.tasks import Draft, Kit, Task, listing
from regraft.evaluate.tasks.ruler.needles import NOISE
from regraft.evaluate.tasks.ruler.placement import insert, line_positions

HOPS = 4
_EXAMPLE_TOKENS, _EXAMPLE_LINES = 500, 5
_ASSIGNMENT = re.compile(r"VAR ([A-Z]{5}) = (?:VAR ([A-Z]{5})|(\d+))")
_QUESTION = re.compile(r"Which variables hold the value (\d+) in the text above\?")


def _make(kit: Kit, budget: int, number: int) -> Draft:
    rng = kit.rng("vt", budget, number)
    drawn = _variables(rng, 2 * (HOPS + 1), letters=5)
    names, twin_names = drawn[: HOPS + 1], drawn[HOPS + 1 :]
    value, other_value = (str(n) for n in rng.sample(range(10_000, 100_000), 2))
    example = _example(kit, rng)
    prefix = _prefix(value)

    def build(lines: int, chain: list[str]) -> str:
        positions = line_positions(kit.rng("vt lines", budget, number, lines), lines, HOPS + 1)
        return example + _question(lines, chain, positions, value)

    chain, twin_chain = _chain(names, value), _chain(twin_names, other_value)
    lines = kit.fit("vt", lambda n: build(n, chain), budget, prefix, least=HOPS + 1)
    return Draft(build(lines, chain), build(lines, twin_chain), tuple(names), prefix)


def _example(kit: Kit, rng: random.Random) -> str:
    """A solved question of at most 500 tokens, or of five lines of noise where these are more."""

    def question(lines: int, rng: random.Random) -> tuple[str, list[str]]:
        names, value = _variables(rng, HOPS + 1, letters=3), str(rng.randrange(10_000, 100_000))
        positions = line_positions(kit.rng("vt example", lines), lines, HOPS + 1)
        return _question(lines, _chain(names, value), positions, value) + _prefix(value), names

    def build(lines: int) -> str:
        return question(lines, kit.rng("vt example"))[0]

    try:
        lines = fit(build, kit.prompter.count, _EXAMPLE_TOKENS, least=_EXAMPLE_LINES)
    except TooShort:
        lines = _EXAMPLE_LINES
    text, names = question(lines, rng)
    return f"{text}{listing(names)[0]}.\n\n"


def _variables(rng: random.Random, count: int, letters: int) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    return names


def _chain(names: list[str], value: str) -> list[str]:
    sources = [value, *(f"VAR {name}" for name in names)]
    return [f"VAR {name} = {source}\n" for name, source in zip(names, sources, strict=False)]


def _question(lines: int, chain: list[str], positions: list[int], value: str) -> str:
    return (
        "Variables are assigned in the text below. Follow the assignments.\n\n"
        f"{insert([NOISE] * lines, chain, positions)}"
        f"Question: Which variables hold the value {value} in the text above?"
    )


def _prefix(value: str) -> str:
    return f" Answer: {HOPS + 1} variables hold the value {value}:"


def _solve(prompt: str) -> list[str]:
    value = _QUESTION.findall(prompt)[-1]
    values: dict[str, str] = {}
    for name, source, number in _ASSIGNMENT.findall(prompt):
        values[name] = number or values[source]
    return [name for name, result in values.items() if result == value]


TRACKING = Task("vt", _make, _solve, answer_tokens=30, haystack=False)
