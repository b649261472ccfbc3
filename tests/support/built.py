"""Documents for steps of `regraft data build`, and a step run on them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from regraft.data.build.document import Document
from regraft.data.build.statistics import Statistics
from regraft.data.build.step import Context, Step
from regraft.data.build.tokens import ByteCounter, Counter


def documents(*texts: str, source: str = "a") -> list[Document]:
    """Documents with the ids '0', '1', ..."""
    return [Document(text, str(number), source) for number, text in enumerate(texts)]


def run_step(
    step: Step, items: Iterable[Document], *, counter: Counter | None = None, seed: int = 0
) -> tuple[list[Document], Statistics]:
    """What a step lets through, and what it counted of its own."""
    statistics = Statistics(step.name)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(statistics, counter or ByteCounter(), Path(folder), seed)
        result = list(step.run(iter(items), context))
        assert list(Path(folder).iterdir()) == []  # temporary files are removed
    return result, statistics
