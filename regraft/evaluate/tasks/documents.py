"""The archive: a question that needs two documents, among hundreds that look like them.

Where was the founder of a society buried? One document says who founded it, another where that
person is buried. The rest are about societies and people whose names differ from these in a word or
an initial, and about the same society's other officer. Finding documents by their words is not
enough, nor is either document alone. In the twin the person's document is about somebody else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from regraft.data.generate import words
from regraft.evaluate.tasks import Draft, Kit, Task

KINDS = ("Society", "Guild", "Club", "League", "Company", "Circle")
OFFICES = ("founder", "first treasurer")
FACTS = ("born", "buried")
_INITIALS = "ABCDEFGHIJKLMNOPQRSTUVW"
_SOCIETY = re.compile(
    r"The (.+?) was founded by (\w+ \w\. \w+) in \d+; its first treasurer was (\w+ \w\. \w+)\."
)
_PERSON = re.compile(r"(\w+ \w\. \w+), an? \w+, was born in (\w+), .+? and was buried in (\w+)\.")
_QUESTION_PATTERN = re.compile(r"Question: in which town was the (.+) of the (.+) (born|buried)\?")
_SHARED_PARTS = ((0,), (2,), (0, 1), (0, 2), (1, 2))  # parts that a similar name shares
_MANY = 1000  # people; the names of later ones are not similar to the first one's
_CANDIDATES = 5  # other people's towns


@dataclass(frozen=True)
class _Person:
    """towns: of birth and burial."""

    name: str
    towns: tuple[str, str]


def _make(kit: Kit, budget: int, number: int) -> Draft:
    rng = kit.rng("archive", budget, number)
    office, fact = rng.randrange(2), rng.randrange(2)
    archive = _Archive(rng)
    society = archive.society
    officers = [archive.person() for _ in OFFICES]
    person, twin_person = officers[office], archive.person()
    answer = person.towns[fact]
    archive.answer = answer.lower()  # no later town has it in its name
    evidence = [_about_society(rng, society, officers), _about_person(rng, person)]
    twin_evidence = [evidence[0], _about_person(rng, twin_person)]
    stream = archive.documents(officers[1 - office])
    others: list[str] = []
    positions = [rng.random() for _ in evidence]
    seed = rng.random()

    def build(units: int, gold: list[str] = evidence) -> str:
        while len(others) < units:
            others.append(next(stream))
        texts = others[:units]
        random.Random(seed).shuffle(texts)
        for position, text in zip(positions, gold, strict=True):
            texts.insert(round(position * len(texts)), text)
        numbered = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(texts, 1))
        return (
            f"Documents of an archive follow; a question about them comes last.\n\n{numbered}\n\n"
            f"Question: in which town was the {OFFICES[office]} of the {society} {FACTS[fact]}?"
        )

    prefix = " Answer: in"
    units = kit.fit("archive", build, budget, prefix)
    other_towns = [
        other.towns[fact] for other in archive.people[: 2 + _CANDIDATES] if other is not twin_person
    ]
    return Draft(
        build(units), build(units, twin_evidence), (answer,), prefix,
        (answer, *(town for town in other_towns if town != answer)),
    )  # fmt: skip


class _Archive:
    """Societies and people with names similar to the first one's, all different."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.answer = rng, ""
        self._parts = self._title()
        self.society = _society(self._parts)
        self._taken = {self.society}
        self.people: list[_Person] = []

    def person(self) -> _Person:
        """A new person, whose name shares one or two parts with the first person's."""
        while True:
            name = self._name()
            if self.people and len(self.people) < _MANY:
                first = self.people[0].name.split()
                for part in self.rng.choice(_SHARED_PARTS):
                    name[part] = first[part]
            if " ".join(name) not in self._taken:
                break
        self._taken.add(" ".join(name))
        self.people.append(_Person(" ".join(name), (self._town(), self._town())))
        return self.people[-1]

    def documents(self, officer: _Person) -> Iterator[str]:
        """The officer's document, then those of similar societies and their officers, endlessly."""
        yield _about_person(self.rng, officer)
        while True:
            officers = [self.person() for _ in OFFICES]
            yield _about_society(self.rng, self._similar_society(), officers)
            for person in officers:
                yield _about_person(self.rng, person)

    def _similar_society(self) -> str:
        """A society's name that shares two or three of its four parts with the first one's."""
        while True:
            parts, others = list(self._parts), self._title()
            for part in self.rng.sample(range(4), self.rng.choice((1, 2))):
                parts[part] = others[part]
            if _society(parts) not in self._taken:
                self._taken.add(_society(parts))
                return _society(parts)

    def _title(self) -> list[str]:
        draw = self.rng.choice
        adjective, noun = draw(words.ADJECTIVES).capitalize(), draw(words.NOUNS).capitalize()
        return [adjective, noun, draw(KINDS), self._town()]

    def _name(self) -> list[str]:
        draw = self.rng.choice
        return [draw(words.GIVEN), f"{draw(_INITIALS)}.", draw(words.FAMILY)]

    def _town(self) -> str:
        while True:
            made = words.made_up(self.rng)
            if len(made) > 4 and not (self.answer and self.answer in made):
                return made.capitalize()


def _society(parts: list[str]) -> str:
    return "{} {} {} of {}".format(*parts)


def _about_society(rng: random.Random, name: str, officers: list[_Person]) -> str:
    founder, treasurer = officers
    return (
        f"The {name} was founded by {founder.name} in {rng.randrange(1600, 1900)}; its first "
        f"treasurer was {treasurer.name}. It met in the old {rng.choice(words.NOUNS)} "
        f"house and kept the {rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)}."
    )


def _about_person(rng: random.Random, person: _Person) -> str:
    trade = rng.choice(words.TRADES)
    article = "an" if trade[0] in "aeiou" else "a"
    return (
        f"{person.name}, {article} {trade}, was born in {person.towns[0]}, owned the "
        f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)} and was buried in "
        f"{person.towns[1]}."
    )


def _solve(prompt: str) -> list[str]:
    """Look up the society, then the person."""
    office, society, fact = _QUESTION_PATTERN.findall(prompt)[-1]
    officers = {name: names for name, *names in _SOCIETY.findall(prompt)}
    towns = {name: pair for name, *pair in _PERSON.findall(prompt)}
    person = officers[society][OFFICES.index(office)]
    return [towns[person][FACTS.index(fact)]] if person in towns else []


ARCHIVE = Task("archive", _make, _solve, answer_tokens=16, haystack=False)
