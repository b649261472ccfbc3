"""The pieces of work of a build that several processes do: a part of a source, or a source.

Each leaves its documents in a file of the staging folder and returns what it counted. A process
that loses its parent ends, so that a killed build leaves none behind.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import xxhash
from pydantic import TypeAdapter

from regraft import progress
from regraft.data.build.document import Document
from regraft.data.build.pipeline import Chain, PlacedStep, run_steps
from regraft.data.build.process_cache import cached
from regraft.data.build.read.parts import Part
from regraft.data.build.read.read import read_part
from regraft.data.build.read.report import ReadReport
from regraft.data.build.statistics import Flow, Histogram, Statistics
from regraft.data.build.step import Spool, read_spool
from regraft.data.build.tokens import Counter, count_tokens, open_counter
from regraft.errors import writing


@dataclass(frozen=True)
class Setting:
    """What all pieces of work need. folder: for the files that they leave."""

    folder: Path
    tokenizer: str
    seed: int
    device: str


@dataclass
class Done:
    """What a piece of work left and counted. xxh3: of its file. before: characters of documents as
    they were read, of a part."""

    xxh3: str
    number: int
    steps: list[Statistics]
    report: ReadReport = field(default_factory=ReadReport)
    read: Flow = field(default_factory=Flow)
    before: Histogram = field(default_factory=Histogram)


DONE = TypeAdapter(Done)
Calls = dict[str, tuple[Callable[..., Done], tuple[Any, ...]]]
"""Pieces of work by name: functions of this module with their arguments."""


def path_of(setting: Setting, key: str) -> Path:
    """The file of a piece of work."""
    return setting.folder / f"{key}.jsonl"


def key_of(source: str) -> str:
    """Names the work on all of a source in the journal and in file names."""
    return f"{source}.all"


def spool_hash(path: Path) -> str | None:
    """`Done.xxh3` of a file; None where there is none."""
    if not path.is_file():
        return None
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def do_part(setting: Setting, steps: Chain, part: Part) -> Done:
    """Read a part of a source and run the steps on it that need no other part."""
    done = Done("", 0, [])
    rows = sum(piece.rows for piece in part.pieces)
    size = rows or sum(piece.stop - piece.start for piece in part.pieces)  # 0 for other files

    def read(bar: progress.Bar) -> Iterator[Document]:
        for document in read_part(steps.source, part, done.report):
            done.read.add(document)
            done.before.add(len(document.text))
            yield document
            bar.advance(1 if rows else len(document.text))

    with progress.bar(part.key, size or None) as bar:
        return _run(setting, part.key, steps.on_parts, read(bar), done)


def do_source(setting: Setting, steps: Chain, parts: list[str], number: int) -> Done:
    """Run the steps that need all of a source, from the files of its parts with `number`
    documents."""
    key = key_of(steps.source.name)

    def read(bar: progress.Bar) -> Iterator[Document]:
        for part in parts:
            for document in read_spool(path_of(setting, part)):
                yield document
                bar.advance()

    with progress.bar(key, number) as bar:
        return _run(setting, key, steps.on_source, read(bar), Done("", 0, []))


def _run(
    setting: Setting,
    key: str,
    steps: Sequence[PlacedStep],
    documents: Iterator[Document],
    done: Done,
) -> Done:
    path = path_of(setting, key)
    counter = counter_of(setting.tokenizer)
    scratch = setting.folder / f"{key}-steps"
    documents, done.steps = run_steps(
        steps, documents, counter, scratch, seed=setting.seed, device=setting.device
    )
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    spool = Spool.write(partial, count_tokens(documents, counter))
    with writing(path):
        partial.rename(path)
    done.xxh3, done.number = spool.xxh3, len(spool)
    return done


def counter_of(tokenizer: str) -> Counter:
    """The counter of a tokenizer, opened once in a process."""
    return cached(open_counter, tokenizer)


def start_worker() -> None:
    """Prepare a process of the pool: Ctrl-C is for the parent, and with the parent it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
