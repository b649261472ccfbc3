"""A language of 194 words for toy models, whose questions can be answered only by retrieval.

A row is prose from a small grammar, with names, nouns and verbs of its own, and in between

    note paris otter maple ;     a needle: a key and its value of two words
    ask paris otter maple ;      a question and its answer, anywhere later in the row
    shout paris OTTER MAPLE ;    the derivative's own skill: the same answer in upper case

No word occurs in two values of a row, so the first word of an answer determines the second. An
answer cannot be guessed: without the needle it is one of 32 x 31 values.
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
PREPOSITIONS = ("near", "under", "behind", "beside", "above", "inside")
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
    *PREPOSITIONS,
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
    """Shares of the pieces of a training row, which are drawn one after another."""

    prose: float
    """Share of pieces that are sentences; the others are needles and questions."""
    questions: float
    """Share of questions among needles and questions, once there are needles to ask for."""
    shout: float = 0.0
    """Share of rows whose questions are `shout` instead of `ask`."""


@dataclass(frozen=True)
class Row:
    """Words, and the index of each answer in them; an answer is two consecutive words."""

    words: list[str]
    answers: list[int]


class Prose:
    """Sentences of one row, from its own 4 names, 6 nouns, 4 verbs and 4 adjectives."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._names, self._nouns = rng.sample(NAMES, 4), rng.sample(NOUNS, 6)
        self._verbs, self._adjectives = rng.sample(VERBS, 4), rng.sample(ADJECTIVES, 4)

    def sentence(self) -> list[str]:
        """One sentence of 5 to 13 words, the full stop included."""
        words = [self._rng.choice(self._names), *self._predicate()]
        drawn = self._rng.random()
        if drawn < 0.35:
            words += [self._rng.choice(PREPOSITIONS), *self._object()]
        elif drawn < 0.55:
            words += [",", "then", *self._predicate()]
        return [*words, "."]

    def words(self, count: int) -> list[list[str]]:
        """Sentences of `count` words in total; the first may lack its beginning."""
        sentences: list[list[str]] = []
        while count > 0:
            sentences.insert(0, self.sentence()[-count:])
            count -= len(sentences[0])
        return sentences

    def _object(self) -> list[str]:
        adjective = [self._rng.choice(self._adjectives)] if self._rng.random() < 0.5 else []
        return [self._rng.choice(("the", "that")), *adjective, self._rng.choice(self._nouns)]

    def _predicate(self) -> list[str]:
        return [self._rng.choice(self._verbs), *self._object()]


def needles(rng: random.Random, count: int) -> dict[str, tuple[str, str]]:
    """`count` keys with their values; at most 16, no word of a value twice."""
    keys, values = rng.sample(KEYS, count), rng.sample(VALUES, 2 * count)
    return dict(zip(keys, zip(values[::2], values[1::2], strict=True), strict=True))


def note(key: str, value: tuple[str, str]) -> list[str]:
    """The words of a needle."""
    return ["note", key, *value, ";"]


def question(skill: Skill, key: str, value: tuple[str, str]) -> list[str]:
    """The words of a question with its answer; the answer is the third and fourth word."""
    answer = value if skill == "ask" else (value[0].upper(), value[1].upper())
    return [skill, key, *answer, ";"]


def training_row(rng: random.Random, length: int, mix: Mix) -> Row:
    """A row to train on: prose, needles and questions in random order, cut at `length` words."""
    skill: Skill = "shout" if rng.random() < mix.shout else "ask"
    prose = Prose(rng)
    unused = list(needles(rng, min(len(KEYS), max(4, length // 16))).items())
    noted: list[tuple[str, tuple[str, str]]] = []
    before_asking = rng.randint(1, 4)  # with 1, early questions are easy, which helps at first
    words, answers = ["<s>"], []
    while len(words) < length:
        if rng.random() < mix.prose:
            words += prose.sentence()
        elif len(noted) >= before_asking and (not unused or rng.random() < mix.questions):
            answers.append(len(words) + 2)
            words += question(skill, *rng.choice(noted))
        else:
            noted.append(unused.pop())
            words += note(*noted[-1])
    return Row(words[:length], [at for at in answers if at + 2 <= length])


def needle_count(length: int) -> int:
    """Number of needles in an exam row: one for 64 words, at least 4, at most the 16 keys."""
    return min(len(KEYS), max(4, length // 64))


def exam_row(
    rng: random.Random,
    length: int,
    skill: Skill = "ask",
    *,
    hide: bool = False,
    count: int | None = None,
) -> Row:
    """An exam row: needles at random depths, each asked for once at the end of the row.

    count: of needles; default: `needle_count`. hide: prose instead of the needles, to measure what
    can be guessed. Raises ValueError where needles and questions do not fit.
    """
    count = needle_count(length) if count is None else count
    facts = needles(rng, count)
    prose_words = length - 1 - 5 * count * (1 if hide else 2)
    if prose_words < 0:
        raise ValueError(f"{count} needles and their questions do not fit in {length} words")
    pieces = Prose(rng).words(prose_words)
    if not hide:
        for key, value in facts.items():
            pieces.insert(rng.randint(0, len(pieces)), note(key, value))
    words = ["<s>", *(word for piece in pieces for word in piece)]
    shuffled = rng.sample(list(facts.items()), count)
    answers = [len(words) + 5 * number + 2 for number in range(count)]
    words += [word for key, value in shuffled for word in question(skill, key, value)]
    return Row(words, answers)


def prose_row(rng: random.Random, length: int) -> Row:
    """A row of prose without needles."""
    words = [word for sentence in Prose(rng).words(length - 1) for word in sentence]
    return Row(["<s>", *words], [])


def encode(rows: Iterable[Row]) -> list[list[int]]:
    """Token ids, as the saved tokenizer gives them."""
    return [[IDS[word] for word in row.words] for row in rows]


def solve(words: Sequence[str], at: int) -> tuple[str, str]:
    """The answer at index `at`, read from its needle, as a model has to. Raises ValueError where
    there is no needle."""
    skill, key = words[at - 2], words[at - 1]
    for start in range(at - 3):
        if words[start] == "note" and words[start + 1] == key:
            first, second = words[start + 2 : start + 4]
            return (first, second) if skill == "ask" else (first.upper(), second.upper())
    raise ValueError(f"no needle for {key!r} before word {at}")


def write_tokenizer(folder: Path) -> None:
    """Save the vocabulary as a fast tokenizer that splits at spaces and puts `<s>` in front."""
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
