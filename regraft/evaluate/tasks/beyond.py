"""Beyond retrieval: learning a rule from many shots, tracking state, walking a graph.

Each answer depends on all of the prompt rather than on one passage, and the problem grows with the
length. There is no haystack: the text consists of evidence and of similar lines.
"""

from __future__ import annotations

import random
import re
from itertools import pairwise

from regraft.data.generate import words
from regraft.evaluate.tasks import Draft, Kit, Task

_LABELS = 8
_SHOT = re.compile(r"Word: (\S+)\nLabel: (\d+)")
_LAST = re.compile(r"Word: (\S+)\nLabel:\s*$")


def _shots(kit: Kit, budget: int, number: int) -> Draft:
    return _shots_group(kit, budget, number, 1)[0]


def _shots_group(kit: Kit, budget: int, text: int, questions: int) -> list[Draft]:
    """Words with labels that depend on the word's ending. Labels are arbitrary numbers, balanced in
    rounds as in HELMET (arXiv 2410.02694). The twin's labels are random, so there is no rule."""
    rng = kit.rng("icl", budget, text)
    endings = rng.sample(["lan", "mor", "tis", "vek", "dun", "pra", "sol", "gim", "hub", "zet"], 8)
    labels = [str(n) for n in rng.sample(range(10, 100), 2 * _LABELS)]
    label_of = dict(zip(endings, labels[:_LABELS], strict=True))
    queried = [rng.choice(endings) for _ in range(questions)]
    seed = rng.random()

    def word(more: random.Random, ending: str) -> str:
        return f"{words.coded(more, 4)}{ending}"

    def build(rounds: int, *, ruled: bool = True) -> str:
        more, blind = kit.rng("shots", seed), kit.rng("labels", seed)
        lines = []
        for _ in range(rounds):
            for ending in more.sample(endings, _LABELS):
                label = label_of[ending] if ruled else blind.choice(labels[_LABELS:])
                lines.append(f"Word: {word(more, ending)}\nLabel: {label}\n\n")
        return f"Each word has a label.\n\n{''.join(lines)}"

    prefix, last_rng = "Label:", kit.rng("asked", seed)
    last_words = [f"Word: {word(last_rng, ending)}\n" for ending in queried]
    rounds = kit.fit_text("icl", build, budget, [(last, prefix) for last in last_words], least=1)
    whole, twin = build(rounds), build(rounds, ruled=False)
    return [
        Draft(
            whole + last, twin + last, (label_of[ending],), prefix, tuple(labels[:_LABELS])
        )
        for last, ending in zip(last_words, queried, strict=True)
    ]  # fmt: skip


def _solve_shots(prompt: str) -> list[str]:
    """The label of the shots with the ending of the last word, if all have the same."""
    ending = _LAST.findall(prompt)[-1][-3:]
    labels = {label for word, label in _SHOT.findall(prompt) if word.endswith(ending)}
    return list(labels) if len(labels) == 1 else []


_MOVE = re.compile(r"(\S+) goes to the (\S+)\.")
_WHERE = re.compile(r"Question: Where is (\S+) now\?")


def _entities(kit: Kit, budget: int, number: int) -> Draft:
    """People go from room to room; where is one of them in the end? The twin does not mention that
    person."""
    rng = kit.rng("entities", budget, number)
    rooms = rng.sample(words.NOUNS, 12)
    people = rng.sample(words.GIVEN, 7)
    who, stranger, others = people[0], people[1], people[2:]
    final, *elsewhere = rooms
    # the last move is anywhere in the second half of the text; after it only others move
    last = 0.5 + rng.random() / 2
    prefix = f" Answer: {who} is in the"
    seed = rng.random()

    def build(moves: int, name: str = who) -> str:
        more = kit.rng("moves", seed)
        lines = []
        for step in range(moves):
            person = more.choice([name, *others])
            room = more.choice(elsewhere)
            if person == name and step >= last * moves:
                person = more.choice(others)
            if step == int(last * moves):
                person, room = name, final if name == who else room
            lines.append(f"{person} goes to the {room}. ")
        return (
            f"People move about a house.\n\n{''.join(lines).rstrip()}\n\n"
            f"Question: Where is {who} now?"
        )

    moves = kit.fit("entities", build, budget, prefix, least=4)
    return Draft(build(moves), build(moves, stranger), (final,), prefix, tuple(rooms))


def _solve_entities(prompt: str) -> list[str]:
    who = _WHERE.findall(prompt)[-1]
    seen = [room for person, room in _MOVE.findall(prompt) if person == who]
    return seen[-1:]


_EDGE = re.compile(r"([a-z]{6}) -> ([a-z]{6})\n")
_WALK = re.compile(r"Start at ([a-z]{6}) and follow (\d) arrows")
_STEPS = 3


def _graph(kit: Kit, budget: int, number: int) -> Draft:
    """Follow three arrows from a node; every node has at most one. The lines are shuffled. In the
    twin the last arrow of the walk starts elsewhere."""
    rng = kit.rng("graph", budget, number)
    path = [words.coded(rng) for _ in range(_STEPS + 1)]
    stray = words.coded(rng)
    other = words.coded(rng)
    prefix = " Answer:"
    seed = rng.random()

    def build(edges: int, end: tuple[str, str] = (path[-2], path[-1])) -> str:
        more = kit.rng("edges", seed)
        nodes = [words.coded(more) for _ in range(edges + 1)]
        pairs = [(a, b) for i, (a, b) in enumerate(pairwise(nodes)) if i % 5]
        walk = [*pairwise(path[:-1]), end]
        lines = [f"{a} -> {b}\n" for a, b in (*pairs, *walk)]
        kit.rng("order", seed, edges).shuffle(lines)
        return (
            f"Arrows lead from word to word.\n\n{''.join(lines)}\n"
            f"Question: Start at {path[0]} and follow {_STEPS} arrows; where do you end?"
        )

    edges = kit.fit("graph", build, budget, prefix)
    return Draft(build(edges), build(edges, (stray, other)), (path[-1],), prefix)


def _solve_graph(prompt: str) -> list[str]:
    arrows = dict(_EDGE.findall(prompt))
    at, steps = _WALK.findall(prompt)[-1]
    for _ in range(int(steps)):
        at = arrows.get(at, "")
    return [at] if at else []


# by candidates: chance is one in eight, and a small model's preference shows earlier
MANY_SHOT = Task(
    "icl", _shots, _solve_shots, 8, scoring="candidates", haystack=False, make_group=_shots_group
)
ENTITIES = Task("entities", _entities, _solve_entities, 8, haystack=False)
GRAPH = Task("graph", _graph, _solve_graph, 12, haystack=False)
