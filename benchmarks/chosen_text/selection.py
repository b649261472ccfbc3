"""Selections of documents of the crawl, most of them by steps of `regraft data build`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from demo_models import TRAINED

from chosen_text.crawl import Size
from regraft.data.build.document import Document
from regraft.data.build.generation import restructure
from regraft.data.build.statistics import Statistics
from regraft.data.build.step import Context, Step
from regraft.data.build.steps.long_dependency import LongDependency
from regraft.data.build.steps.structure import Marks, Structure
from regraft.data.build.tokens import open_counter
from regraft.data.toy_language import ADJECTIVES

# (documents, folder, seed) -> the documents that a training reads
Selection = Callable[[list[Document], Path, int], list[Document]]


def selections(donor: str, base: str, size: Size) -> dict[str, Selection]:
    """The compared selections by name. `donor`, `base`: models that score documents."""

    def is_long(document: Document) -> bool:
        return document.metadata["kind"] != "shorts"

    def at_random(documents: list[Document], folder: Path, seed: int) -> list[Document]:
        return take(documents, size)

    def long_only(documents: list[Document], folder: Path, seed: int) -> list[Document]:
        return take([one for one in documents if is_long(one)], size)

    def shorts_only(documents: list[Document], folder: Path, seed: int) -> list[Document]:
        return take([one for one in documents if not is_long(one)], size)

    def gain(model: str, window: int, copied_run: int) -> Selection:
        def select(documents: list[Document], folder: Path, seed: int) -> list[Document]:
            long = [one for one in documents if is_long(one)]
            step = LongDependency(
                model=model, windows=[window], share=min(1.0, size.needed / len(long)),
                copied_run=copied_run,
            )  # fmt: skip
            return take(list(run(step, long, base, seed)), size)

        return select

    def untied(keys: bool) -> Selection:
        def select(documents: list[Document], folder: Path, seed: int) -> list[Document]:
            shorts = sorted((one for one in documents if not is_long(one)), key=number_of)
            marks = Marks(tail="", head="", trace="")
            if keys:
                marks = Marks(tail=" then {key} , ", head="that {key} , ", trace="")
            step = Structure(length=size.target + 80, share=1.0, marks=marks)
            own = toy_keys if keys else restructure.keys
            with mock.patch.object(restructure, "keys", own):
                return take(list(run(step, shorts, base, seed)), size)

        return select

    window = size.target // 16
    return {
        "random": at_random,
        "long only": long_only,
        "context gain": gain(donor, window, 12),
        "context gain, copies count": gain(donor, window, 2 * size.target),
        "context gain by the base": gain(base, TRAINED // 4, 12),
        "shorts joined": shorts_only,
        "shorts untied": untied(keys=False),
        "shorts untied, keys": untied(keys=True),
    }


def number_of(document: Document) -> tuple[int, int]:
    """The number of a document in the crawl: documents of one group have different keys."""
    first, second = document.id.split()[-1].split(".")
    return int(first), int(second)


def toy_keys(count: int, rng: np.random.Generator) -> list[str]:
    """Keys of two words that the toys know."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[" ".join(rng.choice(ADJECTIVES, 2))] = None
    return list(drawn)


def run(step: Step, documents: list[Document], tokenizer: str, seed: int) -> Iterator[Document]:
    """What a step lets through."""
    with tempfile.TemporaryDirectory() as folder:
        context = Context(
            Statistics(step.name), open_counter(tokenizer), Path(folder), seed, "cpu"
        )  # fmt: skip
        yield from step.run(iter(documents), context)


def take(documents: list[Document], size: Size) -> list[Document]:
    """The first documents that have as many words as a training reads."""
    chosen, words = [], 0
    for document in documents:
        if words >= size.needed * size.target:
            break
        chosen.append(document)
        words += len(document.text.split())
    return chosen
