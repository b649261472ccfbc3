"""A step of a build: documents in, documents out.

    class Shortest(Step):
        \"\"\"Drop short documents.\"\"\"

        name: ClassVar[str] = "shortest"
        independent: ClassVar[bool] = True
        characters: Count = Field(default=100, description="fewest of a document")

        def run(self, documents, context):
            for document in documents:
                if len(document.text) < self.characters:
                    context.statistics.drop("too short")
                else:
                    yield document

The fields are the step's keys in the recipe. `registry.py` has a line for each step. Documents come
one at a time and a step holds few of them: a build's memory does not grow with its text. A step
that has to see all documents before it can decide writes them to `context.spool`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import xxhash

from regraft.data.build.document import Document
from regraft.data.build.statistics import Statistics
from regraft.data.build.tokens import Counter
from regraft.errors import writing
from regraft.recipe_values import Block
from regraft.records import derive_seed


class Step(Block):
    """The keys of a step, and what it does.

    name: its key in a recipe.
    """

    name: ClassVar[str]

    @property
    def independent(self) -> bool:
        """Whether what becomes of a document depends on it (and the context) alone, so that
        several processes may work on parts of a source."""
        return False

    @property
    def uses_device(self) -> bool:
        """Whether the step runs a model on the device of its context."""
        return False

    def check(self) -> None:
        """Raise InputError, before any work, for a missing file, model or package."""

    def check_server(self) -> None:
        """Raise InputError, before any work, where a server that the step asks does not answer. Not
        called where a build is resumed, which may have all the replies that it needs."""

    def inputs(self) -> list[str]:
        """Files and folders that the step reads: they are not overwritten, and their change makes
        another build."""
        return []

    def warnings(self, statistics: Statistics) -> list[str]:
        """Sentences on what the step was meant to do and did not, from its statistics on all
        documents; for the screen, the card and the page."""
        return []

    @abstractmethod
    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        """The documents that go on, in a fixed order. What comes in and goes out is counted by the
        caller, dropped documents and scores by the step, in `context.statistics`."""


@dataclass
class Context:
    """What a step is given beside its documents.

    statistics: of the step. counter: counts tokens by the tokenizer of the recipe. folder: for
    temporary files. seed: of the recipe. device: 'auto', 'cpu' or 'cuda', for steps with a model.
    """

    statistics: Statistics
    counter: Counter
    folder: Path
    seed: int = 0
    device: str = "auto"
    _spools: int = field(default=0, repr=False)

    def rng(self, name: str) -> np.random.Generator:
        """Random numbers that depend on the recipe's seed and `name` (such as a document's id)
        alone."""
        return np.random.default_rng(self.seed_of(name))

    def seed_of(self, name: str) -> int:
        """The seed of `rng(name)`."""
        return derive_seed(self.seed, f"{self.statistics.step} {name}")

    def temporary(self, name: str) -> Path:
        """A path for a temporary file, which no other step of the build has."""
        return self.folder / f"{self.statistics.step.replace('/', '-')}-{name}"

    @contextmanager
    def spool(self, documents: Iterable[Document]) -> Iterator[Spool]:
        """All documents on disk, to be read several times in the block; removed after it."""
        self._spools += 1
        path = self.temporary(f"{self._spools}.jsonl")
        try:
            yield Spool.write(path, documents)
        finally:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Spool:
    """Documents in a file, one after another. len(): their number; xxh3: hash of the file."""

    path: Path
    number: int
    xxh3: str

    @classmethod
    def write(cls, path: Path, documents: Iterable[Document]) -> Spool:
        """Write documents to a file. Raises OutputError naming it, as of a full disk."""
        number, digest = 0, xxhash.xxh3_128()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("wb")
        try:
            for document in documents:
                line = document.to_line().encode()
                digest.update(line)
                with writing(path):
                    file.write(line)
                number += 1
        finally:
            with writing(path):
                file.close()
        return cls(path, number, digest.hexdigest())

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Document]:
        return read_spool(self.path)


def read_spool(path: Path) -> Iterator[Document]:
    """The documents of a file of `Spool.write`."""
    with path.open("rb") as file:
        for line in file:
            yield Document.from_line(line)
