"""The crawl that there is to choose from: documents of five kinds, in the toys' language."""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo_models import TRAINED

from regraft.data.build.document import Document
from regraft.data.toy_language import (
    Mix,
    Prose,
    Row,
    needles,
    note,
    prose_row,
    question,
    training_row,
)

MIX = Mix(prose=0.45, questions=0.65)


@dataclass(frozen=True)
class Size:
    """target: length after the extension. steps, rows: of a training. scorer: steps of the model
    that scores. documents: of each kind in the crawl. held_out: documents that models are scored
    on."""

    target: int = 512
    steps: int = 10
    rows: int = 8
    scorer: int = 40
    documents: int = 90
    held_out: int = 48

    @property
    def needed(self) -> int:
        """Documents of the target length that a training reads."""
        return self.steps * self.rows


def crawl(seed: int, size: Size) -> list[Document]:
    """The documents that there are to choose from, shuffled; `kind` is in their metadata."""
    documents = []
    for number in range(size.documents):
        rng = random.Random(f"{seed} crawl {number}")
        shorts = short_notes(rng, size.target // TRAINED)
        copied = words_of(training_row(rng, TRAINED, MIX)) + " "
        texts = {
            "notes": [words_of(training_row(rng, size.target + 2, MIX))],
            "prose": [words_of(prose_row(rng, size.target + 2))],
            "joined shorts": [" ".join(short_notes(rng, size.target // TRAINED))],
            "copies": [(copied * (size.target // TRAINED + 2))[: 8 * size.target]],
            "shorts": shorts,
        }
        documents += [
            Document(text, f"{kind} {number}.{at}", "crawl", metadata={"kind": kind})
            for kind, own in texts.items()
            for at, text in enumerate(own)
        ]
    random.Random(f"{seed} order").shuffle(documents)
    return documents


def words_of(row: Row) -> str:
    """A row as text; the tokenizer adds the `<s>` in front."""
    return " ".join(row.words[1:])


def short_notes(rng: random.Random, count: int) -> list[str]:
    """`count` short documents with facts and questions about them, no key in two of them."""
    facts = list(needles(rng, 16).items())
    texts = []
    for number in range(count):
        own = facts[number % 8 * 2 :][:2]
        prose, words, noted = Prose(rng), [], 0
        while len(words) < TRAINED:
            if rng.random() < MIX.prose:
                words += prose.sentence()
            elif noted and (noted == len(own) or rng.random() < MIX.questions):
                words += question("ask", *rng.choice(own[:noted]))
            else:
                words += note(*own[noted])
                noted += 1
        texts.append(" ".join(words))
    return texts
