"""Haystacks: generated prose, the user's files, Python's standard library, the toy language.

A corpus gives pieces (sentences or lines) whose concatenation is its text. It is never repeated: a
corpus that is too short for a prompt is an error, and the share of a prompt that is not repeated is
measured (`unique_share`).
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from regraft.data.boundaries import split
from regraft.data.generate import grammar
from regraft.data.generate.fit import UsedUp
from regraft.data.ngrams import ngram_hashes
from regraft.errors import InputError
from regraft.input_files import read_text

_GRAM = 16  # tokens
_SUFFIXES = (".txt", ".md", ".rst", ".text")


class Corpus(Protocol):
    """A text in pieces. name: for records; ending: of a piece that is inserted; size: number of
    pieces, None where the text is endless."""

    name: str
    ending: str
    size: int | None

    def pieces(self, seed: str, count: int) -> list[str]:
        """The first `count` pieces of this seed's text, which is always the same.

        Raises UsedUp if there are fewer."""
        ...


class _Streams:
    """A corpus from an endless stream for each seed; the pieces of the last seed are cached."""

    name = ""
    ending = " "
    size: int | None = None

    def __init__(self) -> None:
        self._seed: str | None = None
        self._drawn: list[str] = []
        self._rest: Iterator[str] = iter(())

    def pieces(self, seed: str, count: int) -> list[str]:
        if seed != self._seed:
            self._seed, self._drawn, self._rest = seed, [], self._stream(seed)
        if count > len(self._drawn):
            self._drawn += islice(self._rest, count - len(self._drawn))
        return self._drawn[:count]

    def _stream(self, seed: str) -> Iterator[str]:
        raise NotImplementedError


class Grammar(_Streams):
    """The chronicles of `grammar`: endless, a different one for each seed."""

    name = "grammar"

    def _stream(self, seed: str) -> Iterator[str]:
        return grammar.sentences(seed)


class World(_Streams):
    """The prose of `regraft.data.toy_language`, for models that know its words only."""

    name = "world"

    def _stream(self, seed: str) -> Iterator[str]:
        from regraft.data.toy_language import Prose

        prose = Prose(random.Random(f"world {seed}"))
        while True:
            yield " ".join(prose.sentence()) + " "


class Fixed:
    """A text of given pieces. Each seed starts at another piece and wraps around at the end."""

    def __init__(self, name: str, pieces: Sequence[str], ending: str = " ") -> None:
        if not pieces:
            raise InputError(f"The text of {name} is empty; give another.")
        self.name, self.ending, self._pieces = name, ending, pieces
        self.size: int | None = len(pieces)

    def pieces(self, seed: str, count: int) -> list[str]:
        size = len(self._pieces)
        if count > size:
            raise UsedUp(
                f"The text of {self.name} is too short: {size} sentences, and a prompt needs "
                "more; give a longer text (it is never repeated), or lower --lengths."
            )
        start = random.Random(f"{self.name} {seed}").randrange(size)
        wrapped = max(0, start + count - size)
        return [*self._pieces[start : start + count], *self._pieces[:wrapped]]


def open_corpus(name: str) -> Corpus:
    """`grammar`, `code`, `world`, or the path of a text file or of a folder of them (.txt, .md,
    .rst; read in the order of their names). Raises InputError for anything else."""
    if name == "grammar":
        return Grammar()
    if name == "world":
        return World()
    if name == "code":
        return _standard_library()
    path = Path(name).expanduser()
    if not path.exists():
        raise InputError(f"--haystack {name} is neither grammar, code, world nor a file or folder.")
    files = [path] if path.is_file() else _texts(path)
    if not files:
        raise InputError(f"--haystack {name} has no {', '.join(_SUFFIXES)} file; give text.")
    return Fixed(path.name, [piece for file in files for piece in split(read_text(file))])


def unique_share(ids: Sequence[int]) -> float:
    """Share of different runs of 16 tokens among all: 1 if nothing is repeated, 1/n for a text that
    is repeated n times. 1 for texts shorter than that."""
    hashes = np.sort(ngram_hashes(ids, _GRAM))  # faster than numpy's unique
    different = 1 + np.count_nonzero(hashes[1:] != hashes[:-1])
    return float(different / len(hashes)) if len(hashes) else 1.0


def _standard_library() -> Fixed:
    """Modules of Python's standard library, top level only, line by line."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    lines = [
        line
        for file in sorted(folder.glob("*.py"))
        for line in read_text(file).splitlines(keepends=True)
    ]
    return Fixed("code", lines, ending="\n")


def _texts(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in _SUFFIXES
    )
