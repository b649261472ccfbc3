"""NLL by position, and what far context is worth, without any question.

Context gain is the NLL of a text's second half when only the last W tokens are seen, minus the NLL
when all are: above 0 the model uses what is further away, below 0 that harms it. W is exact to a
quarter: windows advance by W/4, so a token sees W to 1.25 W tokens. Tokens whose gain exceeds 2
nats and whose NLL with all context is below 2 are key tokens; LongPPL (arXiv 2410.23771) is the
perplexity of these alone. One fixed model chooses them for all: the donor, where there is one; else
each model chooses its own. `key_share` says how many they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from regraft.evaluate.answers.distributed import spread
from regraft.evaluate.answers.model import LanguageModel
from regraft.evaluate.answers.scoring import batches
from regraft.evaluate.prompts.haystack import Corpus
from regraft.evaluate.prompts.length import Prompter, fit
from regraft.evaluate.report.transfer import mean_interval

WINDOWS = (32, 200, 2048, 8192)
_KEY = 2.0  # nats


def texts(
    prompter: Prompter, corpus: Corpus, length: int, count: int, seed: int
) -> list[list[int]]:
    """`count` texts of the corpus, each cut to exactly `length` tokens.

    Raises InputError where the corpus is too short for one."""
    found = []
    for number in range(count):
        name = f"{seed} plain {number}"

        def build(units: int, name: str = name) -> str:
            return "".join(corpus.pieces(name, units))

        # one sentence more than fits, then cut
        units = fit(build, prompter.count, length, what="text") + 1
        while len(ids := prompter.ids(build(units))) < length:
            units += 1
        found.append(ids[:length])
    return found


def edges(length: int) -> list[int]:
    """0, 64, 128, ... by doubling, up to `length`."""
    found = [0, *(64 << i for i in range(64) if 64 << i < length), length]
    return found if length > 64 else [0, length]


Keys = list[list[int]]  # of each row the key tokens, counted from the middle of the text


def key_tokens(model: LanguageModel, rows: Sequence[Sequence[int]], budget: int) -> Keys | None:
    """Those that this model finds by the largest window; None where the rows are too short."""
    windows = _windows(rows)
    if not windows:
        return None
    full = torch.stack(_nll(model, rows, budget))[:, len(rows[0]) // 2 - 1 :]
    near = _windowed(model, rows, len(rows[0]) // 2, windows[-1], budget)
    return [row.nonzero().flatten().tolist() for row in _keys(near, full)]


def measure(
    model: LanguageModel, rows: Sequence[Sequence[int]], budget: int, keys: Keys | None = None
) -> dict[str, Any]:
    """{"nll": {"0-64": nats, ...}, "mean": nats, "perplexity": exp of that, "gain": {W: nats},
    "intervals": {"mean": [low, high], "gain": {W: [low, high]}}, "long_perplexity", "key_share"},
    the last two of `keys`, by default the model's own. Intervals are over texts, None of one.

    rows: of one length."""
    length = len(rows[0])
    whole = torch.stack(_nll(model, rows, budget))  # [rows, length - 1]: of token i + 1
    nll = {}
    marks = edges(length)
    for low, high in pairwise(marks):
        part = whole[:, max(low - 1, 0) : high - 1]
        nll[f"{low}-{high}"] = round(float(part.mean()), 6)
    result: dict[str, Any] = {
        "nll": nll,
        "mean": round(float(whole.mean()), 6),
        "perplexity": _perplexity(float(whole.mean())),
        "intervals": {"mean": _interval(whole.mean(1)), "gain": {}},
        "gain": {},
    }
    full = whole[:, length // 2 - 1 :]
    for window in _windows(rows):
        near = _windowed(model, rows, length // 2, window, budget)
        result["gain"][str(window)] = round(float((near - full).mean()), 6)
        result["intervals"]["gain"][str(window)] = _interval((near - full).mean(1))
        key = _keys(near, full)
    if result["gain"]:
        if keys is not None:
            key = torch.zeros_like(full, dtype=torch.bool)
            for row, positions in zip(key, keys, strict=True):
                row[positions] = True
        result["key_share"] = round(float(key.float().mean()), 6)
        result["long_perplexity"] = _perplexity(float(full[key].mean())) if key.any() else None
    return result


def _interval(means: Tensor) -> list[float] | None:
    """95% interval over texts, from the mean of each."""
    bounds = mean_interval(means.tolist())
    return None if bounds is None else [round(bound, 6) for bound in bounds]


def _perplexity(nll: float) -> float | None:
    """exp of the mean NLL; None where no float holds it."""
    return round(math.exp(nll), 4) if nll < 700 else None


def _windows(rows: Sequence[Sequence[int]]) -> list[int]:
    return [window for window in WINDOWS if 4 * window <= len(rows[0])]


def _keys(near: Tensor, full: Tensor) -> Tensor:
    return (near - full > _KEY) & (full < _KEY)


def _nll(model: LanguageModel, rows: Sequence[Sequence[int]], budget: int) -> list[Tensor]:
    """NLL [length - 1] of every token but the first, of each row."""
    plan = list(batches([len(row) for row in rows], budget))

    def work(batch: list[int]) -> list[Tensor]:
        every = [range(1, len(rows[i])) for i in batch]
        return [nll for nll, _ in model.score([rows[i] for i in batch], every)]

    found: dict[int, Tensor] = {}
    for batch, nll in zip(plan, spread(model.mesh, plan, work), strict=True):
        found |= dict(zip(batch, nll, strict=True))
    return [found[number] for number in range(len(rows))]


def _windowed(
    model: LanguageModel, rows: Sequence[Sequence[int]], start: int, window: int, budget: int
) -> Tensor:
    """NLL [rows, length - start] of tokens from `start` on, each seeing `window` tokens or up to a
    quarter more, behind the text's first token where that is the tokenizer's own."""
    stride = max(1, window // 4)
    parts: list[list[int]] = []
    spans: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        first = [row[0]] if row[0] == model.start else []
        for at in range(start, len(row), stride):
            end = min(at + stride, len(row))
            parts.append([*first, *row[max(0, at - window) : end]])
            spans.append((number, at, end))
    found = torch.zeros(len(rows), len(rows[0]) - start)
    for (number, at, end), nll in zip(spans, _nll(model, parts, budget), strict=True):
        found[number, at - start : end - start] = nll[-(end - at) :]
    return found
