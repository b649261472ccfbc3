"""NLL by position and the gain from distant context, on plain text.

Context gain is the NLL of a text's second half when the model sees only the last W tokens, minus
the NLL when it sees all of them: above 0 the model uses more distant tokens, below 0 they harm it.
Windows advance by W/4, so a token sees W to 1.25 W tokens. Tokens whose gain exceeds 2 nats and
whose NLL with all context is below 2 are key tokens; LongPPL (arXiv 2410.23771) is the perplexity
of these alone. The donor, if there is one, chooses the key tokens for all models; otherwise each
model chooses its own. `key_share` is their share of the second half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from regraft import progress
from regraft.data.generate.fit import fit
from regraft.evaluate.answers.distributed import map_over_processes
from regraft.evaluate.answers.scoring import Answerer, batches
from regraft.evaluate.prompts.haystack import Corpus
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.result import Interval, Perplexity, PerplexityIntervals
from regraft.evaluate.statistics import mean_interval

WINDOWS = (32, 200, 2048, 8192)
_KEY = 2.0  # nats


def texts(
    prompter: Prompter, corpus: Corpus, length: int, count: int, seed: int
) -> list[list[int]]:
    """`count` texts of the corpus, each cut to exactly `length` tokens.

    Raises InputError if the corpus is too short for one."""
    rows = []
    for number in range(count):
        name = f"{seed} plain {number}"

        def build(units: int, name: str = name) -> str:
            return "".join(corpus.pieces(name, units))

        # one sentence more than fits, then truncated
        units = fit(build, prompter.count, length, what="text") + 1
        while len(ids := prompter.ids(build(units))) < length:
            units += 1
        rows.append(ids[:length])
    return rows


def edges(length: int) -> list[int]:
    """0, 64, 128, ... by doubling, up to `length`."""
    return [0, *(64 << i for i in range(64) if 64 << i < length), length]


KeyTokens = list[list[int]]  # of each row, positions counted from the middle of the text


def key_tokens(model: Answerer, rows: Sequence[Sequence[int]], budget: int) -> KeyTokens | None:
    """The key tokens that this model chooses by the largest window; None if the rows are too
    short."""
    windows = _windows(rows)
    if not windows:
        return None
    full = torch.stack(_nll(model, rows, budget))[:, len(rows[0]) // 2 - 1 :]
    windowed = _windowed(model, rows, len(rows[0]) // 2, windows[-1], budget)
    return [row.nonzero().flatten().tolist() for row in _key_mask(windowed, full)]


def measure(
    model: Answerer, rows: Sequence[Sequence[int]], budget: int, keys: KeyTokens | None = None
) -> Perplexity:
    """The figures of one model.

    rows: token ids, all of one length. budget: tokens in a batch. keys: the key tokens, by default
    those that the model chooses itself.
    """
    length, windows = len(rows[0]), _windows(rows)
    with progress.bar("perplexity", total=2 + 5 * len(windows)) as bar:  # half texts' tokens
        with bar.part(2):
            whole = torch.stack(_nll(model, rows, budget))  # [rows, length - 1]: of token i + 1
        by_window: dict[int, Tensor] = {}  # [rows, length / 2]
        for window in windows:
            with bar.part(5):
                by_window[window] = _windowed(model, rows, length // 2, window, budget)
    nll = {}
    marks = edges(length)
    for low, high in pairwise(marks):
        part = whole[:, max(low - 1, 0) : high - 1]
        nll[f"{low}-{high}"] = round(float(part.mean()), 6)
    gain: dict[str, float] = {}
    gain_intervals: dict[str, Interval | None] = {}
    key_share = long_perplexity = None
    full = whole[:, length // 2 - 1 :]
    for window, windowed in by_window.items():
        gain[str(window)] = round(float((windowed - full).mean()), 6)
        gain_intervals[str(window)] = _interval((windowed - full).mean(1))
        key = _key_mask(windowed, full)
    if gain:
        if keys is not None:
            key = torch.zeros_like(full, dtype=torch.bool)
            for row, positions in zip(key, keys, strict=True):
                row[positions] = True
        key_share = round(float(key.float().mean()), 6)
        long_perplexity = _perplexity(float(full[key].mean())) if key.any() else None
    return Perplexity(
        nll=nll,
        mean=round(float(whole.mean()), 6),
        perplexity=_perplexity(float(whole.mean())),
        intervals=PerplexityIntervals(mean=_interval(whole.mean(1)), gain=gain_intervals),
        gain=gain,
        key_share=key_share,
        long_perplexity=long_perplexity,
    )


def _interval(means: Tensor) -> Interval | None:
    """95% interval over texts, from the mean of each."""
    bounds = mean_interval(means.tolist())
    return None if bounds is None else (round(bounds[0], 6), round(bounds[1], 6))


def _perplexity(nll: float) -> float | None:
    """exp of the mean NLL; None if it overflows."""
    return round(math.exp(nll), 4) if nll < 700 else None


def _windows(rows: Sequence[Sequence[int]]) -> list[int]:
    return [window for window in WINDOWS if 4 * window <= len(rows[0])]


def _key_mask(windowed: Tensor, full: Tensor) -> Tensor:
    return (windowed - full > _KEY) & (full < _KEY)


def _nll(model: Answerer, rows: Sequence[Sequence[int]], budget: int) -> list[Tensor]:
    """NLL [length - 1] of every token but the first, of each row."""
    plan = list(batches([len(row) for row in rows], budget))

    def work(batch: list[int]) -> list[Tensor]:
        every = [range(1, len(rows[i])) for i in batch]
        return [nll for nll, _ in model.score([rows[i] for i in batch], every)]

    nll_of: dict[int, Tensor] = {}
    for batch, nll in zip(plan, map_over_processes(model.mesh, plan, work), strict=True):
        nll_of |= dict(zip(batch, nll, strict=True))
    return [nll_of[number] for number in range(len(rows))]


def _windowed(
    model: Answerer, rows: Sequence[Sequence[int]], start: int, window: int, budget: int
) -> Tensor:
    """NLL [rows, length - start] of tokens from `start` on, each seeing `window` to 1.25 `window`
    tokens, after the beginning-of-text token if the row has one."""
    stride = max(1, window // 4)
    parts: list[list[int]] = []
    spans: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        first = [row[0]] if row[0] == model.start else []
        for at in range(start, len(row), stride):
            end = min(at + stride, len(row))
            parts.append([*first, *row[max(0, at - window) : end]])
            spans.append((number, at, end))
    result = torch.zeros(len(rows), len(rows[0]) - start)
    for (number, at, end), nll in zip(spans, _nll(model, parts, budget), strict=True):
        result[number, at - start : end - start] = nll[-(end - at) :]
    return result
