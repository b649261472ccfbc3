"""The long dependency score: how much segments of a document help to predict later ones.

"Long Context is Not Long at All: A Prospector of Long-Dependency Data" (ProLong, arXiv 2405.17915).
A document is cut into N segments of equal length. For a pair i > j with perplexities P:

    strength     S_ij = (P(c_i) - P(c_i | c_j)) / P(c_i)
    distance     D_ij = (i - j) / (N - 1)
    specificity  E_i  = 1 - H(softmax over j of P(c_i) - P(c_i | c_j)) / log(number of j)
    score        of a pair (S_ij + D_ij) E_i where S_ij > 0.1, else 0

The specificity is near 0 where every earlier segment helps equally, as in text that repeats itself,
and 1 where one does, or one alone was measured. As in the authors' code, a sample of the pairs is
measured, softmax is over differences of perplexities that are not divided, and the first token of a
segment is not scored. Difference: the score is the mean over the pairs, not their sum, so that it
does not grow with the length of the document.

A pair is read without what stands around it. So the scorer needs a context of two segments only and
a document may be of any length; but references that need more than one segment are not seen.

Cost: a pair reads two segments and each later segment of a pair is read once alone. 500 pairs of
128 tokens are 128,000 tokens and up to 64,000 more, whatever the document's length: four to six
passes over 32k tokens, with little attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.data.build.scoring.causal_scorer import Scorer

_LEAST = 0.1  # strength of a pair that counts
_BATCH = 16_384  # tokens read at a time

Pair = tuple[int, int]  # (later segment, earlier segment)


@dataclass(frozen=True)
class Dependency:
    """Figures of one document. score: the mean over its pairs. strong: share of the pairs that
    count. pairs: that were measured; the other figures are 0 where there are none."""

    score: float
    strong: float
    pairs: int


def measure(
    scorer: Scorer, ids: Sequence[int], *, segment: int, pairs: int, rng: np.random.Generator
) -> Dependency:
    """The score of a document.

    ids: its tokens, the beginning-of-text token first if the model has one; every segment is read
    after it. segment: tokens of a segment; an incomplete last one is left out. pairs: the most that
    are measured, drawn by `rng`.
    """
    first = [ids[0]] if len(ids) and ids[0] == scorer.start else []
    text = ids[len(first) :]
    segments = [list(text[at : at + segment]) for at in range(0, len(text) - segment + 1, segment)]
    drawn = draw_pairs(len(segments), pairs, rng)
    if not drawn:
        return Dependency(0.0, 0.0, 0)
    later = sorted({i for i, _ in drawn})
    alone = dict(zip(later, _perplexities(scorer, [first + segments[i] for i in later], segment),
                     strict=True))  # fmt: skip
    texts = [first + segments[j] + segments[i] for i, j in drawn]
    after = dict(zip(drawn, _perplexities(scorer, texts, segment), strict=True))
    return combine(alone, after, len(segments))


def combine(alone: Mapping[int, float], after: Mapping[Pair, float], count: int) -> Dependency:
    """The score from perplexities: of segments alone, and of each pair's later one after the
    earlier one. count: segments of the document, two or more."""
    gains: dict[int, list[float]] = {}
    for (i, _), perplexity in after.items():
        gains.setdefault(i, []).append(alone[i] - perplexity)
    specific = {i: specificity(np.array(values)) for i, values in gains.items()}
    scores = []
    for (i, j), perplexity in after.items():
        strength = (alone[i] - perplexity) / alone[i]
        if strength > _LEAST:
            scores.append((strength + (i - j) / (count - 1)) * specific[i])
    return Dependency(sum(scores) / len(after), len(scores) / len(after), len(after))


def specificity(gains: NDArray[np.float64]) -> float:
    """1 less the entropy of the softmax of gains in perplexity, as a share of the greatest."""
    if len(gains) == 1:
        return 1.0
    weights = np.exp(gains - gains.max())
    weights /= weights.sum()
    logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
    return float(np.clip(1 + (weights * logs).sum() / np.log(len(weights)), 0, 1))


def draw_pairs(count: int, most: int, rng: np.random.Generator) -> list[Pair]:
    """At most `most` of the pairs of `count` segments, in order."""
    total = count * (count - 1) // 2
    numbers = range(total) if total <= most else sorted(rng.choice(total, most, replace=False))
    ends = np.cumsum(np.arange(count))  # pairs of later segments up to i
    rows = np.searchsorted(ends, np.asarray(numbers, dtype=np.int64), side="right")
    return [(int(i), int(n - ends[i - 1])) for i, n in zip(rows, numbers, strict=True)]


def _perplexities(scorer: Scorer, texts: Sequence[list[int]], segment: int) -> list[float]:
    """Of the last segment of each text, all of one length, without that segment's first token."""
    size = max(1, _BATCH // len(texts[0]))
    result: list[float] = []
    for at in range(0, len(texts), size):
        nll = scorer.last(texts[at : at + size], segment - 1).double()
        result += nll.mean(1).exp().tolist()
    return result
