"""What a step did, in counts that can be added up over the parts of a source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from regraft.data.build.document import Document


@dataclass
class Histogram:
    """Values by size, in classes of two significant digits: at most 180 for each power of ten.

    counts: by the lower end of the class as text, such as '0.25' or '1200'.
    """

    counts: dict[str, int] = field(default_factory=dict)
    number: int = 0
    total: float = 0.0
    least: float | None = None
    greatest: float | None = None

    def add(self, value: float, number: int = 1) -> None:
        """Count a value. Raises ValueError for NaN and infinity."""
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be counted in a histogram")
        value = float(value)
        key = class_of(value)
        self.counts[key] = self.counts.get(key, 0) + number
        self.number += number
        self.total += value * number
        self.least = value if self.least is None else min(self.least, value)
        self.greatest = value if self.greatest is None else max(self.greatest, value)

    def include(self, other: Histogram) -> None:
        """Add the values of another histogram."""
        for key, count in other.counts.items():
            self.counts[key] = self.counts.get(key, 0) + count
        self.number += other.number
        self.total += other.total
        for value in (other.least, other.greatest):
            if value is not None:
                self.least = value if self.least is None else min(self.least, value)
                self.greatest = value if self.greatest is None else max(self.greatest, value)

    @property
    def mean(self) -> float | None:
        """The mean of the values; None where there are none."""
        return self.total / self.number if self.number else None


def class_of(value: float) -> str:
    """The class of a value: it without all but two significant digits, as text."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    step = 10.0 ** (exponent - 1)
    return f"{math.floor(value / step + 1e-9) * step:.6g}"


@dataclass
class Flow:
    """Documents, characters and (where they are counted) tokens that pass a place."""

    documents: int = 0
    characters: int = 0
    tokens: int = 0

    def add(self, document: Document) -> None:
        """Count a document."""
        self.documents += 1
        self.characters += len(document.text)
        self.tokens += document.tokens or 0

    def include(self, other: Flow) -> None:
        """Add what another place counted."""
        self.documents += other.documents
        self.characters += other.characters
        self.tokens += other.tokens


@dataclass
class Statistics:
    """Statistics of one step: what came in and went out, and why documents were dropped.

    dropped: documents by reason. counts: anything else that the step counts, by name; by_source: of
    these, what is counted for each source. scores: the distribution of every score that the step
    gives.
    """

    step: str
    into: Flow = field(default_factory=Flow)
    out: Flow = field(default_factory=Flow)
    dropped: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    by_source: dict[str, dict[str, int]] = field(default_factory=dict)
    scores: dict[str, Histogram] = field(default_factory=dict)

    def drop(self, reason: str) -> None:
        """Count a dropped document; reason: in a few words, such as 'too short'."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def count(self, name: str, number: int = 1, *, source: str | None = None) -> None:
        """Count something that is no dropped document, such as 'cut documents'; with `source`, in
        `by_source` too."""
        _add({name: number}, self.counts)
        if source is not None:
            _add({name: number}, self.by_source.setdefault(source, {}))

    def score(self, name: str, value: float) -> None:
        """Add a score to its distribution."""
        self.scores.setdefault(name, Histogram()).add(value)

    def include(self, other: Statistics) -> None:
        """Add the statistics of the same step on another part."""
        self.into.include(other.into)
        self.out.include(other.out)
        _add(other.dropped, self.dropped)
        _add(other.counts, self.counts)
        for source, counts in other.by_source.items():
            _add(counts, self.by_source.setdefault(source, {}))
        for name, histogram in other.scores.items():
            self.scores.setdefault(name, Histogram()).include(histogram)


def _add(counts: Mapping[str, int], total: dict[str, int]) -> None:
    for name, number in counts.items():
        total[name] = total.get(name, 0) + number
