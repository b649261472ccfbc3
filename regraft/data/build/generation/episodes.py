"""Facts to hide in a text and questions about them, for training: what long context is for.

retrieval    one of many facts of the same form
chains       facts that lead from one to the next, in random order
tracking     a state that changes again and again; its last value, or an earlier one
aggregation  a sum, count or maximum over facts that are everywhere
many_shot    a rule that only its examples show

Evaluation has tasks of the same kinds (`regraft.evaluate.tasks`). Both take words and the hiding of
lines from `regraft.data.generate`; wordings, keys, values and rules here are others, so that
training teaches the skill and not the test. Keys are invented words with a number, values are codes
of letters and digits; evaluation has pairs of real words, random letters and numbers of seven
digits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from regraft.data.build.generation.questions import Query
from regraft.data.generate.words import made_up

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"


@dataclass(frozen=True)
class Episode:
    """facts: sentences to hide in a text. ordered: their order matters."""

    facts: list[str]
    queries: list[Query]
    ordered: bool = False


def retrieval(rng: random.Random, facts: int, queries: int) -> Episode:
    """Codes of lockers; all but those in the questions are decoys."""
    wording, question = rng.choice(_LOCKERS)
    names = _names(rng, facts)
    codes = [_code(rng) for _ in names]
    return Episode(
        [wording.format(name=n, code=c) for n, c in zip(names, codes, strict=True)],
        [
            Query(question.format(name=names[at]), codes[at])
            for at in rng.sample(range(facts), min(queries, facts))
        ],
    )


_LOCKERS = (
    ("Locker {name} opens with {code}.", "Which code opens locker {name}?"),
    ("By the register, {code} was issued to {name}.", "What was issued to {name}?"),
    ("Anyone who calls {name} must say {code} first.", "What must a caller of {name} say?"),
)


def chains(rng: random.Random, facts: int, queries: int) -> Episode:
    """Parcels that are sent on from place to place; each place sends to at most one other."""
    wording, question = rng.choice(_PARCELS)
    hops = rng.randint(2, 4)
    count = max(1, facts // hops)
    names = iter(_names(rng, count * (hops + 1)))
    routes = [[next(names) for _ in range(hops + 1)] for _ in range(count)]
    return Episode(
        [wording.format(a=a, b=b) for route in routes for a, b in pairwise(route)],
        [
            Query(question.format(a=route[0]), route[-1])
            for route in rng.sample(routes, min(queries, count))
        ],
    )


_PARCELS = (
    ("Whatever reaches {a} is sent on to {b}.", "Where does a parcel that reaches {a} end up?"),
    (
        "The road sign at {a} points to {b}.",
        "From {a}, where do the road signs lead at last?",
    ),
)


def tracking(rng: random.Random, facts: int, queries: int) -> Episode:
    """Ships that change their berth; the last one is asked for, or the one before it."""
    ships = _names(rng, max(2, facts // 8))
    berths = [f"berth {letter}{number}" for letter in _LETTERS for number in range(1, 10)]
    history: dict[str, list[str]] = {ship: [] for ship in ships}
    lines = []
    for _ in range(facts):
        ship = rng.choice(ships)
        berth = rng.choice([one for one in berths if one not in history[ship]] or berths)
        history[ship].append(berth)
        lines.append(f"The {ship} has now been moved to {berth}.")
    asked = []
    for ship in rng.sample(ships, len(ships)):
        if len(history[ship]) > 1 and rng.random() < 0.5:
            asked.append(
                Query(f"At which berth was the {ship} before its last?", history[ship][-2])
            )
        elif history[ship]:
            asked.append(Query(f"At which berth is the {ship} in the end?", history[ship][-1]))
    return Episode(lines, asked[:queries], ordered=True)


def aggregation(rng: random.Random, facts: int, queries: int) -> Episode:
    """Crates that are unloaded all over the text; how many in all, how often, at most."""
    firms = _names(rng, max(1, min(queries, facts // 6)))
    loads: dict[str, list[int]] = {firm: [] for firm in firms}
    lines = []
    for _ in range(facts):
        firm, crates = rng.choice(firms), rng.randint(2, 60)
        loads[firm].append(crates)
        lines.append(f"A cart of {firm} unloaded {crates} crates.")
    asked = []
    for firm in firms:
        question, value = rng.choice(_TOTALS)
        if loads[firm]:
            asked.append(Query(question.format(firm=firm), str(value(loads[firm]))))
    return Episode(lines, asked[:queries])


_TOTALS: tuple[tuple[str, Callable[[list[int]], int]], ...] = (
    ("How many crates did {firm} unload, all carts added up?", sum),
    ("How often did a cart of {firm} unload crates?", len),
    ("How many crates were in the largest load of {firm}?", max),
)


def many_shot(rng: random.Random, facts: int, queries: int) -> Episode:
    """Beads in bowls by the first letters of their name; new beads are asked for."""
    starts = rng.sample([a + b for a in "bdfgklmnprstvz" for b in "aeiou"], 6)
    bowls = dict(zip(starts, _names(rng, len(starts)), strict=True))

    def bead(start: str) -> str:
        return start + made_up(rng)

    known = [rng.choice(starts) for _ in range(facts)]
    lines = [f"A {bead(start)} bead goes into bowl {bowls[start]}." for start in known]
    asked = []
    for _ in range(queries):
        start = rng.choice(known)
        asked.append(Query(f"Into which bowl would a {bead(start)} bead go?", bowls[start]))
    return Episode(lines, asked)


KINDS: dict[str, Callable[[random.Random, int, int], Episode]] = {
    "retrieval": retrieval,
    "chains": chains,
    "tracking": tracking,
    "aggregation": aggregation,
    "many_shot": many_shot,
}


def _names(rng: random.Random, count: int) -> list[str]:
    """`count` different invented names with a number: 'Tolarin 31'."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[f"{made_up(rng).capitalize()} {rng.randint(10, 99)}"] = None
    return list(drawn)


def _code(rng: random.Random) -> str:
    """'KQ-482-T31': 648 million of them."""
    letters = [rng.choice(_LETTERS) for _ in range(3)]
    return f"{letters[0]}{letters[1]}-{rng.randint(100, 999)}-{letters[2]}{rng.randint(10, 99)}"
