"""The steps of a recipe in the order in which they run, and what may run side by side.

Every source is read in parts. The steps at its beginning whose documents are independent run on a
part; the others need all of the source; the recipe's own steps need all sources. Where a source has
only independent steps, so do the first of the recipe's own. What runs where depends on the recipe
alone, so that any number of processes gives the same documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from regraft.data.build.document import Document
from regraft.data.build.schema import Body, Source
from regraft.data.build.statistics import Statistics
from regraft.data.build.step import Context, Step
from regraft.data.build.tokens import Counter

ALL = "all"  # in labels: of the recipe's own steps


@dataclass(frozen=True)
class PlacedStep:
    """A step with its label, such as 'books/1-quality' or 'all/1-dedup'."""

    label: str
    step: Step


@dataclass(frozen=True)
class Chain:
    """The steps of one source: those that run on its parts, and those on all of it."""

    source: Source
    on_parts: tuple[PlacedStep, ...]
    on_source: tuple[PlacedStep, ...]


@dataclass(frozen=True)
class Pipeline:
    """The chains of all sources, and the steps on everything after them."""

    chains: tuple[Chain, ...]
    on_all: tuple[PlacedStep, ...]

    @property
    def steps(self) -> dict[str, Step]:
        """Every step by its label, in the order of the recipe."""
        in_chains = [s for chain in self.chains for s in (*chain.on_parts, *chain.on_source)]
        moved = [placed for placed in in_chains if placed.label.startswith(f"{ALL}/")]
        own = [placed for placed in in_chains if placed not in moved]
        return {placed.label: placed.step for placed in (*own, *moved, *self.on_all)}


def pipeline(body: Body) -> Pipeline:
    """The pipeline of a recipe."""
    common = _placed(ALL, [entry.step for entry in body.steps])
    moved = _independent(common)
    chains = []
    for source in body.sources:
        own = [*_placed(source.name, [entry.step for entry in source.steps]), *moved]
        first = _independent(own)
        chains.append(Chain(source, tuple(first), tuple(own[len(first) :])))
    return Pipeline(tuple(chains), tuple(common[len(moved) :]))


def run_steps(
    steps: Iterable[PlacedStep],
    documents: Iterator[Document],
    counter: Counter,
    folder: Path,
    *,
    seed: int,
    device: str,
) -> tuple[Iterator[Document], list[Statistics]]:
    """(documents after all steps, statistics of each), the latter filled while the former are
    read."""
    results = []
    for placed in steps:
        statistics = Statistics(placed.label)
        results.append(statistics)
        context = Context(statistics, counter, folder, seed, device)
        documents = _counted_out(placed.step.run(_counted_in(documents, statistics), context),
                                 statistics)  # fmt: skip
    return documents, results


def _placed(name: str, steps: Sequence[Step]) -> list[PlacedStep]:
    return [PlacedStep(f"{name}/{i}-{step.name}", step) for i, step in enumerate(steps, 1)]


def _independent(steps: Sequence[PlacedStep]) -> list[PlacedStep]:
    return list(takewhile(lambda placed: placed.step.independent, steps))


def _counted_in(documents: Iterator[Document], statistics: Statistics) -> Iterator[Document]:
    for document in documents:
        statistics.into.add(document)
        yield document


def _counted_out(documents: Iterator[Document], statistics: Statistics) -> Iterator[Document]:
    for document in documents:
        statistics.out.add(document)
        yield document
