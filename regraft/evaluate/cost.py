"""An estimate of an evaluation's time, from its tokens, the models' sizes and this machine's speed.

A token that is read costs two operations per weight and, for attention, four per layer and hidden
element for half the tokens before it. A generated token costs as much, at the speed of a matrix
times a vector. Nothing else is counted, so models of a few million weights take longer. A text that
several questions share is read once if its cache fits, and then a few tokens for each question.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError
from regraft.evaluate.answers.cache import cache_bytes, too_large
from regraft.evaluate.answers.model import Source
from regraft.evaluate.answers.perplexity import WINDOWS
from regraft.evaluate.answers.served.source import ServedSource
from regraft.evaluate.measures import REFERENCE, drift_size
from regraft.evaluate.prepare import Evaluated, Work
from regraft.evaluate.tasks import Task
from regraft.units import format_bytes, format_tokens

_REPEATS = 3  # measurements, of which the fastest counts
_QUESTION = 32  # tokens that differ between two questions about a text
_SLOWER = 16  # times that a token takes longer to generate than to read, about


def plan(work: Work, device: torch.device) -> dict[str, str | float]:
    """The plan of a dry run: label -> value."""
    cells, models = len(work.tasks) * len(work.lengths), len(work.sources)
    items = sum(
        min(work.settings.items, task.max_items or work.settings.items) for task in work.tasks
    )
    read, written = tokens(work)
    endpoint = isinstance(work.sources[-1], ServedSource)
    return {
        "models": ", ".join(source.name for source in work.sources),
        "tasks": ", ".join(task.name for task in work.tasks) or "none",
        "measures": ", ".join(work.measures) or "none",
        "lengths": ", ".join(map(format_tokens, work.lengths)),
        "cells": cells * models,
        "items": items * len(work.lengths) * models,
        "tokens to read": sum(read.values()) * models,
        "tokens to generate, at most": written * models,
        **_cache(work, device),
        "seconds": round(seconds(work, device), 1),
        **({"time of the endpoint": "unknown"} if endpoint else {}),
    }


def tokens(
    work: Work, fits: Callable[[int], bool] = lambda length: True
) -> tuple[dict[int, int], int]:
    """(tokens that one model reads, by the length of their texts; the most that it generates).

    fits: whether the cache of a text of so many tokens does, so that its questions share it. An
    item's candidates count once, as with a cached prompt; lm-eval's suites do not count."""
    read: dict[int, int] = {}
    for measured in measured_tokens(work).values():
        for length, count in measured.items():
            read[length] = read.get(length, 0) + count
    written = 0
    for task in work.tasks:
        for length in work.lengths:
            here, generated = cell_tokens(work, task, length, fits)
            read[length] = read.get(length, 0) + here
            written += generated
    return read, written


def cell_tokens(
    work: Work, task: Task, length: int, fits: Callable[[int], bool]
) -> tuple[int, int]:
    """`tokens` of one task and length: what a model reads, and the most that it generates."""
    settings = work.settings
    items, both = min(settings.items, task.max_items or settings.items), 1 + settings.twins
    prompts = items * both
    read = prompts * length
    if settings.questions_per_text > 1 and task.make_group and fits(length):
        read = -(-items // _questions(work, task, length)) * both * length + prompts * _QUESTION
    return read, prompts * task.answer_tokens if work.scoring(task) == "generate" else 0


def measured_tokens(work: Work) -> dict[str, dict[int, int]]:
    """`tokens` of each measure without questions, by the length of their texts."""
    measured: dict[str, dict[int, int]] = {}
    longest, texts = max(work.lengths), work.settings.texts
    if "perplexity" in work.measures:
        read = {longest: texts * longest}
        for window in WINDOWS:
            if 4 * window <= longest:  # half the text, each quarter window behind a whole one
                read[window] = texts * longest * 5 // 2
        measured["perplexity"] = read
    if "drift" in work.measures:
        length, count = drift_size(work)
        measured["drift"] = {length: length * count}
    return measured


class Operations:
    """What the parts of one model's evaluation cost in operations; of a served one in tokens."""

    def __init__(self, work: Work, source: Evaluated, device: torch.device) -> None:
        self._work, self._is_first = work, source is work.sources[0]
        self._weights, self._attended = 1, 0
        self.fits: Callable[[int], bool] = lambda length: True
        if isinstance(source, Source):
            self._weights, self._attended = _size(source)
            self.fits = partial(_fits, source, device)

    def cell(self, task: Task, length: int) -> float:
        """Of one task and length."""
        read, written = cell_tokens(self._work, task, length, self.fits)
        return self.of({length: read}) + _SLOWER * self.of({0: written})

    def measures(self) -> dict[str, float]:
        """Of each measure without questions, and of the `REFERENCE` of the drift, which the first
        model gives."""
        sizes = {name: self.of(read) for name, read in measured_tokens(self._work).items()}
        if self._is_first and "drift" in sizes:
            sizes[REFERENCE] = sizes["drift"]
        return sizes

    def of(self, read: Mapping[int, int]) -> float:
        """Of tokens that are read, by the length of their texts."""
        each = {length: 2 * self._weights + 2 * self._attended * length for length in read}
        return float(sum(count * each[length] for length, count in read.items()))


def seconds(work: Work, device: torch.device) -> float:
    """Seconds for all models in one process on one device; served ones do not count."""
    fast, slow = _rate(device, 8192 if device.type == "cuda" else 256), _rate(device, 1)
    total = 0.0
    for source in work.sources:
        if isinstance(source, ServedSource):
            continue
        operations = Operations(work, source, device)
        read, written = tokens(work, operations.fits)
        total += operations.of(read) / fast + operations.of({0: written}) / slow
    return total


def _size(source: Source) -> tuple[int, int]:
    """(elements of all tensors, layers x hidden elements)."""
    with Checkpoint.open(source.location) as checkpoint:
        config = checkpoint.config
        weights = sum(info.nbytes // info.dtype.itemsize for info in checkpoint.tensors.values())
    return weights, int(config.get("num_hidden_layers", 0)) * int(config.get("hidden_size", 0))


def _questions(work: Work, task: Task, length: int) -> int:
    """How many questions about one text a task has."""
    questions, known = work.settings.questions_per_text, work.kit.group_sizes
    if (task.name, length) not in known:
        try:
            known[task.name, length] = len(task.group(work.kit, length, 0, questions))
        except InputError:  # no text fits
            known[task.name, length] = questions
    return known[task.name, length]


def _cache(work: Work, device: torch.device) -> dict[str, str]:
    """The line of the plan on the largest cache of a text, if questions share texts."""
    local = [source for source in work.sources if isinstance(source, Source)]
    if work.settings.questions_per_text == 1 or not local:
        return {}
    size = max(_cache_bytes(source, max(work.lengths), device) for source in local)
    reason = too_large(size, device)
    alone = f"; one question at a time, since {reason}" if reason else ""
    return {"cache of a text, at most": f"{format_bytes(size)}{alone}"}


def _fits(source: Source, device: torch.device, length: int) -> bool:
    return too_large(_cache_bytes(source, length, device), device) is None


def _cache_bytes(source: Source, length: int, device: torch.device) -> int:
    config = source.config()
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    dtype = getattr(torch, name.removeprefix("torch."))
    on_cpu = device.type == "cpu" and dtype == torch.float16  # is loaded in float32
    return cache_bytes(config, length, 4 if on_cpu else dtype.itemsize)


def _rate(device: torch.device, rows: int) -> float:
    """Operations a second of [rows, 2048] x [2048, 2048], on a GPU of [rows, 8192] x [8192, 8192],
    which computes a smaller product in less time than a launch takes."""
    on_cpu = device.type == "cpu"
    dtype, width = (torch.float32, 2048) if on_cpu else (torch.bfloat16, 8192)
    left = torch.ones(rows, width, device=device, dtype=dtype)
    right = torch.ones(width, width, device=device, dtype=dtype)
    best, products = float("inf"), 1 if on_cpu else 10
    for _ in range(_REPEATS + 1):  # the first one warms up
        start = time.perf_counter()
        for _ in range(products):
            result = left @ right
        result[0, 0].item()
        best = min(best, (time.perf_counter() - start) / products)
    return 2 * rows * width**2 / best
