"""Endless generated prose: the chronicle of a small country, deterministic, without repetitions.

Every chronicle has its own cast: people with a trade, a home and a possession, who appear again and
again. So distant context helps to predict the text, as in a real book.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from regraft.data.generate.words import ADJECTIVES, FAMILY, GIVEN, NOUNS, TRADES, made_up, plural

_PEOPLE = 24
_ARTICLE = re.compile(r"\ba (?=[aeiou])")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_NUMBERS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "fifteen", "twenty", "thirty", "forty",
)  # fmt: skip
_DEEDS = (
    "bought {things} from {other}", "sold {things} to {other}", "lost {thing} near {place}",
    "found {thing} behind the {noun}", "walked from {place} to {town}",
    "mended {thing} for {other}", "wrote to {other} about {thing}", "painted {thing} {adjective}",
    "asked {other} for {things}", "hid {thing} under the {noun}", "counted {things} in {place}",
    "carried {things} across the {noun}", "dreamt of {thing} and of {place}",
    "quarrelled with {other} over {thing}", "promised {other} {things}",
    "opened the {noun} in {place}", "gave {other} {possession}",
)  # fmt: skip
_OPENINGS = (
    "On {date} {who} {deed}.",
    "{who} {deed}, and {deed2}.",
    "In {place}, {who} {deed}.",
    "It was said in {town} that {who} {deed}.",
    "Before the {noun} was {adjective}, {who} {deed}.",
    "{other}, the {trade} of {home}, remembered that {who} {deed}.",
    "Nobody in {place} knew why {who} {deed}.",
    "After {number} days of rain {who} {deed}, while {other} {deed2}.",
    "The {adjective} {noun} of {place} cost {amount} crowns, so {who} {deed}.",
    "\u201cKeep {thing},\u201d said {who} to {other}, who {deed2}.",
)


def sentences(seed: str) -> Iterator[str]:
    """The endless sentences of one chronicle; each ends in a space or, after 3 to 8 of them, in a
    blank line."""
    rng = random.Random(f"chronicle {seed}")
    story = _Story(rng)
    left = rng.randint(3, 8)
    while True:
        left -= 1
        yield story.sentence() + (" " if left else "\n\n")
        if not left:
            left = rng.randint(3, 8)


class _Story:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._towns = [self._town() for _ in range(8)]
        self._cast = [
            {
                "name": f"{rng.choice(GIVEN)} {rng.choice(FAMILY)}",
                "trade": rng.choice(TRADES),
                "home": rng.choice(self._towns),
                "possession": f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}",
            }
            for _ in range(_PEOPLE)
        ]

    def sentence(self) -> str:
        rng = self._rng
        who, other, third, fourth = rng.sample(self._cast, 4)
        fields = {
            "who": who["name"],
            "other": other["name"],
            "trade": other["trade"],
            "home": other["home"],
            "possession": who["possession"],
            "place": rng.choice((who["home"], rng.choice(self._towns))),
            "town": rng.choice(self._towns),
            "date": f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1702, 1899)}",
            "number": rng.choice(_NUMBERS),
            "amount": str(rng.randint(11, 989)),
        }
        opening = rng.choice(_OPENINGS)
        deeds = {
            "deed": self._fill(rng.choice(_DEEDS), {**fields, "other": third["name"]}),
            "deed2": self._fill(rng.choice(_DEEDS), {**fields, "other": fourth["name"]}),
        }
        text = self._fill(opening, {**fields, **deeds})
        return text[0].upper() + text[1:]

    def _fill(self, text: str, fields: dict[str, str]) -> str:
        rng = self._rng
        drawn = {
            "thing": f"{rng.choice(('a', 'the'))} {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}",
            "things": " ".join(
                (rng.choice(_NUMBERS), rng.choice(ADJECTIVES), plural(rng.choice(NOUNS)))
            ),
            "noun": rng.choice(NOUNS),
            "adjective": rng.choice(ADJECTIVES),
        }
        return _ARTICLE.sub("an ", text.format_map({**drawn, **fields}))

    def _town(self) -> str:
        name = made_up(self._rng).capitalize()
        return name + self._rng.choice((" Bridge", " Hill", "ton", "ford", "by", "", "", ""))
