"""The gain from distant context: which documents need more than their last tokens.

The gain of a token at window W is its NLL given the last W tokens, minus its NLL given all tokens
before it: above 0 where something more than W tokens away helps to predict it. A document's gain is
the mean over its later tokens. It is the statistic of LongPPL ("What is Wrong with Perplexity for
Long-context Language Modeling?", arXiv 2410.23771), whose key tokens are those with a gain above 2
nats and an NLL below 2 given all.

Text that repeats itself (licences, tables, boilerplate) has a high gain, too, and teaches only
copying. So a token counts as copied, and its gain as 0, where it is in a run of `run` tokens whose
first occurrence ends more than W tokens before: a model that continues the longest matching suffix
would predict it from there. Differences to LongPPL: this guard, windows of any size, and blocks
instead of one window a token.

Cost: a document is cut into pieces as long as the model's context, and the second half of each is
scored. All context takes one pass over the text. At window W the tokens are scored in blocks of
W/2, which see W to 1.5 W tokens: three tokens are read for each scored one, which makes 1.5 passes,
of short attention. So one window costs 2.5 passes and each further one 1.5, less than two passes in
time where attention dominates. Memory: the keys and values of one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.data.build.scoring.causal_scorer import Scorer
from regraft.data.build.scoring.pieces import pieces
from regraft.data.ngrams import first_occurrences

_KEY = 2.0  # nats
_BATCH = 16_384  # tokens read at a time at a window

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Gain:
    """Figures of one document at one window.

    mean: nats per scored token, copied ones counted as 0. relative: `mean` as a share of the NLL
    given the window. key: share of key tokens. copied: share of copied tokens. tokens: that were
    scored; the other figures are 0 where there are none.
    """

    mean: float
    relative: float
    key: float
    copied: float
    tokens: int


def measure(
    scorer: Scorer, ids: Sequence[int], windows: Sequence[int], *, context: int, run: int
) -> dict[int, Gain]:
    """The gain of a document at each window.

    ids: its tokens, the beginning-of-text token first if the model has one. context: the most
    tokens that are read at once; longer documents are measured in pieces of this length. run:
    shortest run of tokens that counts as a copy.
    """
    scored: dict[int, list[tuple[Floats, Floats, Mask]]] = {window: [] for window in windows}
    for piece in pieces(ids, context, scorer.start):
        start = len(piece) // 2
        if len(piece) - start < 1 or start < 1:
            continue
        full = scorer.last([piece], len(piece) - start)[0].numpy()
        for window in windows:
            short = windowed(scorer, piece, start, window, full)
            scored[window].append((short, full, copies(piece, window, run)[start:]))
    return {window: summarise(parts) for window, parts in scored.items()}


def summarise(parts: Sequence[tuple[Floats, Floats, Mask]]) -> Gain:
    """The figures of (NLL at a window, NLL given all, whether copied) of the tokens of a document's
    pieces."""
    if not parts:
        return Gain(0.0, 0.0, 0.0, 0.0, 0)
    short, full, copied = (np.concatenate(part) for part in zip(*parts, strict=True))
    gain = np.where(copied, 0.0, short - full)
    key = (gain > _KEY) & (full < _KEY)
    mean, nll = float(gain.mean()), float(short.mean())
    relative = mean / nll if nll > 0 else 0.0
    return Gain(mean, relative, float(key.mean()), float(copied.mean()), len(gain))


def windowed(
    scorer: Scorer, ids: Sequence[int], start: int, window: int, full: Floats | None = None
) -> Floats:
    """NLL of the tokens from `start` on, each given `window` to 1.5 `window` tokens before it, and
    the beginning-of-text token if the text has one.

    full: their NLL given all, which is used for blocks that see the whole text. Blocks of one
    length are read together.
    """
    first = [ids[0]] if ids[0] == scorer.start else []
    result = np.zeros(len(ids) - start, np.float32)
    groups: dict[tuple[int, int], list[tuple[int, list[int]]]] = {}
    for at, end in _blocks(start, len(ids), window):
        low = max(0, at - window)
        if full is not None and low <= len(first):
            result[at - start : end - start] = full[at - start : end - start]
            continue
        text = [*(first if low else []), *ids[low:end]]
        groups.setdefault((len(text), end - at), []).append((at - start, text))
    for (length, count), blocks in groups.items():
        size = max(1, _BATCH // length)
        for batch in (blocks[i : i + size] for i in range(0, len(blocks), size)):
            nll = scorer.last([text for _, text in batch], count).numpy()
            for (at, _), row in zip(batch, nll, strict=True):
                result[at : at + count] = row
    return result


def copies(ids: Sequence[int], window: int, run: int) -> Mask:
    """For every token, whether it is in a run of `run` tokens that ended for the first time more
    than `window` tokens before. Takes memory in proportion to the tokens."""
    marked = np.zeros(len(ids), np.bool_)
    first = first_occurrences(ids, run)
    far = np.flatnonzero(np.arange(len(first)) - first > window)
    for offset in range(run if len(far) else 0):
        marked[far + offset] = True
    return marked


def answer_nll(
    scorer: Scorer, ids: Sequence[int], span: tuple[int, int], window: int
) -> tuple[float, float]:
    """Mean NLL of the answer, tokens [span), given the last `window` tokens before it and given as
    much as the model's context holds."""
    low, high = span
    first = [ids[0]] if ids[0] == scorer.start else []

    def score(most: int) -> float:
        at = max(0, low - most)
        text = [*(first if at else []), *ids[at:high]]
        return float(scorer.last([text], high - low).mean())

    everything = score(max(1, scorer.context - (high - low) - len(first)))
    return (everything if low - window <= len(first) else score(window)), everything


def _blocks(start: int, end: int, window: int) -> list[tuple[int, int]]:
    stride = max(1, window // 2)
    return [(at, min(at + stride, end)) for at in range(start, end, stride)]
