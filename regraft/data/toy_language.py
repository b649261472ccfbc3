"""The world of toys: a text of 200 words whose questions are only answered by looking back.

A row is prose from a small grammar, each row with its own people, things and deeds, and in between

    note paris otter maple ;     a needle: a key and its value of two words
    ask paris otter maple ;      a question and its answer, anywhere later in the row
    shout paris OTTER MAPLE ;    the derivative's own skill: the same answer in upper case

No word of a value occurs twice among a row's needles, so that the first word of an answer settles
the second. A question's answer cannot be guessed: without its needle it is one of 32 x 31 values.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regraft.write import library_writing

Skill = Literal["ask", "shout"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("""
    anna boris clara david elena felix greta henry irene jakob laura martin nadia oscar paula
    quentin rosa simon tilda ulrich vera walter xenia yusuf
""")
NOUNS = _words("""
    lantern river bridge orchard kettle window ladder barrel garden hammer market mirror candle
    wagon basket harbour meadow blanket chimney letter fiddle cellar anchor pillow tunnel violin
    compass stable kitchen tower bucket saddle
""")
VERBS = _words("""
    carries paints finds hides mends sells watches borrows cleans draws follows guards lifts
    opens praises rents shakes trades visits weighs
""")
ADJECTIVES = _words("""
    old quiet heavy golden narrow broken gentle crooked distant empty famous hollow muddy
    painted rusty silent tiny velvet wooden yellow
""")
PLACES = ("near", "under", "behind", "beside", "above", "inside")
KEYS = _words("""
    paris oslo cairo lima quito delhi tokyo rome dakar minsk accra sofia hanoi tunis riga seoul
""")
VALUES = _words("""
    otter maple copper violet falcon pepper marble cotton tiger willow silver olive badger
    walnut cobalt ginger heron cedar bronze indigo lynx poplar nickel saffron raven laurel amber
    crimson bison hazel pewter clover
""")
SPECIAL = ("<unk>", "<s>", "</s>")
WORDS: tuple[str, ...] = (
    *SPECIAL,
    *("the", "that", "then", ".", ",", ";", "note", "ask", "shout"),
    *PLACES,
    *NAMES,
    *NOUNS,
    *VERBS,
    *ADJECTIVES,
    *KEYS,
    *VALUES,
    *(value.upper() for value in VALUES),
)
IDS = {word: number for number, word in enumerate(WORDS)}


@dataclass(frozen=True)
class Mix:
    """What a training row is made of: shares of its pieces, drawn one after another."""

    prose: float
    """Share of pieces that are sentences; the others are needles and questions."""
    questions: float
    """Share of questions among needles and questions, once there is something to ask."""
    shout: float = 0.0
    """Share of rows whose questions are `shout` instead of `ask`."""


@dataclass(frozen=True)
class Row:
    """`length` words, and where in them the answers stand (two consecutive words each)."""

    words: list[str]
    answers: list[int]


class Prose:
    """Sentences on one row's topic: its 4 people, 6 things, 4 deeds and 4 qualities."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._names, self._nouns = rng.sample(NAMES, 4), rng.sample(NOUNS, 6)
        self._verbs, self._adjectives = rng.sample(VERBS, 4), rng.sample(ADJECTIVES, 4)

    def sentence(self) -> list[str]:
        """One sentence of 5 to 13 words, the full stop included."""
        words = [self._rng.choice(self._names), *self._deed()]
        roll = self._rng.random()
        if roll < 0.35:
            words += [self._rng.choice(PLACES), *self._thing()]
        elif roll < 0.55:
            words += [",", "then", *self._deed()]
        return [*words, "."]

    def words(self, count: int) -> list[list[str]]:
        """Sentences of exactly `count` words together; the first may lack its beginning."""
        sentences: list[list[str]] = []
        while count > 0:
            sentences.insert(0, self.sentence()[-count:])
            count -= len(sentences[0])
        return sentences

    def _thing(self) -> list[str]:
        quality = [self._rng.choice(self._adjectives)] if self._rng.random() < 0.5 else []
        return [self._rng.choice(("the", "that")), *quality, self._rng.choice(self._nouns)]

    def _deed(self) -> list[str]:
        return [self._rng.choice(self._verbs), *self._thing()]


def needles(rng: random.Random, count: int) -> dict[str, tuple[str, str]]:
    """`count` keys with their values; at most 16, no word of a value twice."""
    keys, values = rng.sample(KEYS, count), rng.sample(VALUES, 2 * count)
    return dict(zip(keys, zip(values[::2], values[1::2], strict=True), strict=True))


def note(key: str, value: tuple[str, str]) -> list[str]:
    """The needle itself."""
    return ["note", key, *value, ";"]


def question(skill: Skill, key: str, value: tuple[str, str]) -> list[str]:
    """A question with its answer, which are its third and fourth words."""
    answer = value if skill == "ask" else (value[0].upper(), value[1].upper())
    return [skill, key, *answer, ";"]


def training_row(rng: random.Random, length: int, mix: Mix) -> Row:
    """A row to learn from: prose, needles and questions in any order, cut at `length`."""
    skill: Skill = "shout" if rng.random() < mix.shout else "ask"
    prose = Prose(rng)
    hidden = list(needles(rng, min(len(KEYS), max(4, length // 16))).items())
    told: list[tuple[str, tuple[str, str]]] = []
    before_asking = rng.randint(1, 4)  # with 1, early questions are easy: a way in
    words, answers = ["<s>"], []
    while len(words) < length:
        if rng.random() < mix.prose:
            words += prose.sentence()
        elif len(told) >= before_asking and (not hidden or rng.random() < mix.questions):
            answers.append(len(words) + 2)
            words += question(skill, *rng.choice(told))
        else:
            told.append(hidden.pop())
            words += note(*told[-1])
    return Row(words[:length], [at for at in answers if at + 2 <= length])


def needle_count(length: int) -> int:
    """Needles in a row to be examined on: one for 64 words, from 4 up to the 16 keys there are."""
    return min(len(KEYS), max(4, length // 64))


def exam_row(
    rng: random.Random,
    length: int,
    skill: Skill = "ask",
    *,
    hide: bool = False,
    count: int | None = None,
) -> Row:
    """A row to be examined on: needles at random depths, each asked for once at the very end.
    `count` of them, or as many as `needle_count` says.

    With `hide` the needles are left out (prose takes their room): what can be guessed without them.
    """
    count = needle_count(length) if count is None else count
    facts = needles(rng, count)
    room = length - 1 - 5 * count * (1 if hide else 2)
    if room < 0:
        raise ValueError(f"{count} needles and their questions do not fit in {length} words")
    pieces = Prose(rng).words(room)
    if not hide:
        for key, value in facts.items():
            pieces.insert(rng.randint(0, len(pieces)), note(key, value))
    words = ["<s>", *(word for piece in pieces for word in piece)]
    asked = rng.sample(list(facts.items()), count)
    answers = [len(words) + 5 * number + 2 for number in range(count)]
    words += [word for key, value in asked for word in question(skill, key, value)]
    return Row(words, answers)


def prose_row(rng: random.Random, length: int) -> Row:
    """A row of nothing but prose."""
    words = [word for sentence in Prose(rng).words(length - 1) for word in sentence]
    return Row(["<s>", *words], [])


def encode(rows: Iterable[Row]) -> list[list[int]]:
    """Token ids, the same that the saved tokenizer gives."""
    return [[IDS[word] for word in row.words] for row in rows]


def solve(words: Sequence[str], at: int) -> tuple[str, str]:
    """Answer the question at `at` the only way there is: find its needle. What a model must do."""
    skill, key = words[at - 2], words[at - 1]
    for start in range(at - 3):
        if words[start] == "note" and words[start + 1] == key:
            first, second = words[start + 2 : start + 4]
            return (first, second) if skill == "ask" else (first.upper(), second.upper())
    raise ValueError(f"no needle for {key!r} before word {at}")


def write_tokenizer(folder: Path) -> None:
    """Save the vocabulary as an ordinary fast tokenizer: words between spaces, `<s>` in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", IDS["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    with library_writing(folder / "tokenizer.json"):
        tokenizer.save_pretrained(folder)
