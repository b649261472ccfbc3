"""`LATENT_LIST`: what a list contains after a long series of operations.

After the Latent List of Michelangelo (arXiv 2409.12640): a few operations make the list; between
them are distractors, operations that undo each other at once or change other lists. The question
is, in turn, for its sum, length, smallest or largest element, or its end. The twin has other
relevant operations of the same form, with another result. A list whose length is the answer
contains words, so that no number in the prompt is the answer.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable
from typing import Any

from regraft.data.generate import words
from regraft.data.generate.hiding import hide
from regraft.evaluate.tasks import Draft, Kit, Task

VIEWS: dict[str, Callable[[list[Any]], Any]] = {
    "sum({})": sum,
    "len({})": len,
    "min({})": min,
    "max({})": max,
    "{}[-3:]": lambda items: items[-3:],
}
_RELEVANT, _FIRST = 8, 3  # operations; elements at the start, and never fewer
_GROWING = ("append", "insert")
_METHODS = (*_GROWING, *_GROWING, "pop", "remove", "reverse", "sort")
_CALL = re.compile(r"^(\w+)\.(\w+)\((.*)\)$", re.MULTILINE)
_START = re.compile(r"^(\w+) = (\[.*\])$", re.MULTILINE)
_QUESTION_PATTERN = re.compile(r"Question: what does print\((.+)\) show")
Program = tuple[list[Any], list[str], Any]  # first elements, operations, the printed value


def _make(kit: Kit, budget: int, number: int) -> Draft:
    rng = kit.rng("latent_list", budget, number)
    view = list(VIEWS)[number % len(VIEWS)]
    name, *others = rng.sample(words.NOUNS, 4)
    drawn: list[Any]
    if view == "len({})":
        drawn = rng.sample(sorted({*words.NOUNS} - {name, *others}), 150)
    else:  # elements have 3 digits and a sum at least 4, so the answer is not in the list
        drawn = rng.sample(range(400, 1000), 300)
    half = _RELEVANT + _FIRST
    evidence = _program(rng, name, view, drawn[:half])
    twin_program = evidence
    while str(evidence[2]) in str(twin_program[2]):
        twin_program = _program(rng, name, view, drawn[half : 2 * half])
    other_values = drawn[2 * half :]
    firsts = {other: rng.sample(other_values, _FIRST) for other in others}
    depths = sorted(rng.random() for _ in range(_RELEVANT))
    more = kit.rng("idle", budget, number)
    distractors: list[str] = []

    def build(units: int, program: Program = evidence) -> str:
        while len(distractors) < units:
            distractors.append(_distractor(more, name, others, other_values))
        starts = "".join(
            f"{key} = {value}\n" for key, value in ({name: program[0]} | firsts).items()
        )
        lines = hide(distractors[:units], [line + "\n" for line in program[1]], depths)
        return (
            f"Lines of Python, run from first to last.\n\n{starts}{lines}\n"
            f"Question: what does print({view.format(name)}) show after the last line?"
        )

    prefix = " Answer: it shows"
    units = kit.fit("latent_list", build, budget, prefix)
    return Draft(build(units), build(units, twin_program), (str(evidence[2]),), prefix)


def _program(rng: random.Random, name: str, view: str, values: list[Any]) -> Program:
    """Random operations and their result; each of `values` is used at most once."""
    first, fresh = values[:_FIRST], iter(values[_FIRST:])
    state, lines = list(first), []
    for _ in range(_RELEVANT):
        method = rng.choice(_METHODS if len(state) > _FIRST else _GROWING)
        arguments: tuple[Any, ...] = ()
        if method == "append":
            arguments = (next(fresh),)
        elif method == "insert":
            arguments = (0, next(fresh))
        elif method == "pop":
            arguments = rng.choice(((), (0,)))
        elif method == "remove":
            arguments = (rng.choice(state),)
        getattr(state, method)(*arguments)
        lines.append(f"{name}.{method}({', '.join(map(repr, arguments))})")
    return first, lines, VIEWS[view](state)


def _distractor(rng: random.Random, name: str, others: list[str], values: list[Any]) -> str:
    """One or two operations that leave the list as it was."""
    value = repr(rng.choice(values))
    if rng.random() < 0.5:
        return rng.choice(
            (
                f"{name}.append({value})\n{name}.pop()\n",
                f"{name}.insert(0, {value})\n{name}.pop(0)\n",
                f"{name}.reverse()\n{name}.reverse()\n",
            )
        )
    call = rng.choice((f"append({value})", f"insert(0, {value})", "reverse()", "sort()"))
    return f"{rng.choice(others)}.{call}\n"


def _solve(prompt: str) -> list[str]:
    """Execute all operations on the list."""
    queried = _QUESTION_PATTERN.findall(prompt)[-1]
    name, state, view_of = next(
        (name, ast.literal_eval(first), view_of)
        for name, first in _START.findall(prompt)
        for view, view_of in VIEWS.items()
        if view.format(name) == queried
    )
    for which, method, arguments in _CALL.findall(prompt):
        if which == name:
            getattr(state, method)(*ast.literal_eval(f"[{arguments}]"))
    return [str(view_of(state))]


LATENT_LIST = Task("latent_list", _make, _solve, answer_tokens=24, haystack=False)
