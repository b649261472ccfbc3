"""RULER's two aggregation tasks: common words and frequent words.

`COMMON_WORDS`: which 10 words of a numbered list are the most frequent? They occur 30 times each,
all others 3 times (6 times and once below a length of 4096 tokens). A solved example comes first,
of 40 words, of which 10 occur 10 times and the others 3 times (20 words, 3 times and once).

`FREQUENT_WORDS`: which three words are the most frequent after '...'? Word k of a vocabulary of
(length - 50) // 50 words occurs n / (k^2 zeta(2)) times; the first is '...'.

The words are made up, so any number is available; NVIDIA's common words are English.

The order of an answer does not matter, so these are generated rather than teacher-forced.
"""

from __future__ import annotations

import random
import re
from collections import Counter

from regraft.data.generate import words
from regraft.evaluate.tasks import Draft, Kit, Task, listing

COMMON, ALPHA = 10, 2.0
_SHORT = 4096  # tokens; shorter lists repeat words less often
_ZETA = 1.6449340668482264  # zeta(ALPHA)
_COMMON_TOKENS, _FREQUENT_TOKENS = 120, 50  # tokens reserved for the answer
_LIST = re.compile(r"\d+\. (\S+)")
_CODED = re.compile(r"words below\.\n(.*)\nQuestion: Leaving", re.DOTALL)


def _common(kit: Kit, budget: int, number: int) -> Draft:
    rng = kit.rng("cwe", budget, number)
    often, seldom = (30, 3) if budget + _COMMON_TOKENS >= _SHORT else (6, 1)
    taken: set[str] = set()
    size = (40, 10, 3) if often == 30 else (20, 3, 1)
    example_words = _made_up(rng, COMMON, taken)
    example = _list_question(rng, example_words, _made_up(rng, size[0] - COMMON, taken), *size[1:])
    example += f"{_LIST_PREFIX}{listing(example_words)[0]}.\n\n"
    common, twin_common = _made_up(rng, COMMON, taken), _made_up(rng, COMMON, taken)
    fillers: list[str] = []
    order = kit.rng("cwe order", budget, number).random()

    def build(units: int, repeated: list[str]) -> str:
        if len(fillers) < units:
            fillers.extend(_made_up(rng, units - len(fillers), taken))
        shuffler = random.Random(order)
        return example + _list_question(shuffler, repeated, fillers[:units], often, seldom)

    units = kit.fit("cwe", lambda n: build(n, common), budget, _LIST_PREFIX, least=1)
    return Draft(build(units, common), build(units, twin_common), tuple(common), _LIST_PREFIX)


_LIST_PREFIX = " Answer: The 10 words that stand most often in the list are:"


def _list_question(
    rng: random.Random, common: list[str], others: list[str], often: int, seldom: int
) -> str:
    items = [*common * often, *others * seldom]
    rng.shuffle(items)
    return (
        "Here is a numbered list of words, in which some stand more often than others. Remember "
        f"those that stand most often.\n{_numbered(items)}\n"
        "Question: Which 10 words stand most often in the list above?"
    )


def _numbered(items: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(items, 1))


def _made_up(rng: random.Random, count: int, taken: set[str]) -> list[str]:
    result: list[str] = []
    while len(result) < count:
        word = words.made_up(rng)
        if word not in taken and len(word) > 4:
            taken.add(word)
            result.append(word)
    return result


def _solve_common(prompt: str) -> list[str]:
    last = prompt.rsplit("numbered list", 1)[1]
    counts = Counter(_LIST.findall(last.split("\nQuestion")[0]))
    return [word for word, _ in counts.most_common(COMMON)]


_FREQUENT_PREFIX = " Answer: The three most frequent coded words are:"


def _frequent(kit: Kit, budget: int, number: int) -> Draft:
    rng = kit.rng("fwe", budget, number)
    size = max(4, budget // 50)  # of the vocabulary, '...' included; budget: length - 50
    drawn: dict[str, None] = {}
    while len(drawn) < size - 1 + 3:
        drawn[words.coded(rng)] = None
    names = list(drawn)
    answer, twin_answer, rest = names[:3], names[3:6], names[6:]
    order = rng.random()

    def build(units: int, frequent: list[str]) -> str:
        sequence = []
        for rank, word in enumerate(["...", *frequent, *rest], 1):
            sequence += [word] * int(units * rank**-ALPHA / _ZETA)
        random.Random(order).shuffle(sequence)
        return (
            "Coded words repeat in the text below; track how often each does. Dots are noise. "
            f"These are the words below.\n{' '.join(sequence)}\n"
            "Question: Leaving out the dots, which three coded words are the most frequent above?"
        )

    # with 60 words the third and fourth differ in number: 2 and 1
    units = kit.fit("fwe", lambda n: build(n, answer), budget, _FREQUENT_PREFIX, least=60)
    return Draft(build(units, answer), build(units, twin_answer), tuple(answer), _FREQUENT_PREFIX)


def _solve_frequent(prompt: str) -> list[str]:
    counts = Counter(_CODED.findall(prompt)[-1].split())
    del counts["..."]
    return [word for word, _ in counts.most_common(3)]


COMMON_WORDS = Task(
    "cwe", _common, _solve_common, _COMMON_TOKENS, scoring="generate", haystack=False
)
FREQUENT_WORDS = Task(
    "fwe", _frequent, _solve_frequent, _FREQUENT_TOKENS, scoring="generate", haystack=False
)
