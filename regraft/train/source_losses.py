"""Held-out loss of each source before and after a training, and the mix that it suggests.

Before: the model as given, by its own RoPE. After: the exported weights by the exported one. The
same rows and tokens are scored, apart for positions within the model's own context, where a higher
loss is something forgotten, and beyond it, where a loss before training is that of a model that was
never trained there.

The suggested shares are one step of dynamic batch loading (Sheared LLaMA, arXiv 2310.06694) with
the model before training as the reference: w' = w exp(max(after - before, 0)), normalised, from the
losses within the context. Differences: one step for the whole training, and no scaling law.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from regraft.data.batch import Row
from regraft.rope import ContextSpec
from regraft.train.contexts import rotary_length
from regraft.train.corpus import Corpus
from regraft.train.recipe.recipe import Recipe
from regraft.train.record import LossPair, SourceLoss
from regraft.train.step.learner import Learner
from regraft.train.step.rotary import fix_rotary, frequencies_for
from regraft.train.validation import document_rows, scores


@dataclass(frozen=True)
class SpanNll:
    """Mean NLL in nats of the tokens of a source at a span of positions, and their number."""

    nll: float
    tokens: int


Measured = dict[str, list[SpanNll | None]]
"""By source: within the model's context and beyond it, None where a source has no such text."""


class SourceRows:
    """Fixed rows of held-out text by source: `watch.rows` documents of each, evenly drawn from all
    that are held out, up to the longest length that is watched.

    context: of the model before training, where the positions are split. Empty without `watch`, and
    where fewer than two sources have held-out text.
    """

    def __init__(self, corpus: Corpus, context: int) -> None:
        self.corpus, self.context = corpus, context
        self.rows: dict[str, list[Row]] = {}
        recipe, body = corpus.recipe, corpus.recipe.body
        if body.watch is None:
            return
        longest = max(recipe.watch_length(stage) for stage in body.stages)
        trained = {name for stage in body.stages for name in recipe.mix(stage)}
        for name, held_out in corpus.held_out.items():
            if name not in (body.watch.sources or trained) or not len(held_out):
                continue
            count = min(body.watch.rows, len(held_out))
            drawn = held_out[np.linspace(0, len(held_out) - 1, count).round().astype(int)]
            lengths = corpus.tokens[name].lengths()[drawn]
            documents = [(name, int(document)) for document in drawn]
            rows = document_rows(corpus, documents, min(int(lengths.max()), longest))
            if rows:
                self.rows[name] = rows
        if len(self.rows) < 2:
            self.rows = {}

    def measure(self, learner: Learner, context: ContextSpec) -> Measured:
        """NLL by source, with the RoPE of `context`, which the learner has afterwards. Collective.

        A source without a token within the context is left out.
        """
        recipe = self.corpus.recipe
        if not self.rows:
            return {}
        learner.eval()
        fix_rotary(learner.model, context, rotary_length(recipe, recipe.body.stages[-1], context))
        result: Measured = {}
        for name, rows in self.rows.items():
            with frequencies_for(learner, len(rows[0].ids)):
                nll, _, valid = scores(learner, rows, self.corpus.mesh)
            edges = (0, self.context, max(self.context, nll.shape[1]))
            spans = [_mean(nll[:, low:high], valid[:, low:high]) for low, high in pairwise(edges)]
            if spans[0] is not None:
                result[name] = spans
        learner.train()
        return result


def compare(
    before: Measured, after: Measured, shares: Mapping[str, float]
) -> dict[str, SourceLoss]:
    """The record of both measurements. shares: of the trained tokens, by source."""
    raised = {
        name: shares.get(name, 0.0) * math.exp(max(_change(before[name][0], after[name][0]), 0.0))
        for name in before
    }
    rest = sum(share for name, share in shares.items() if name not in before)
    total = sum(raised.values()) + rest
    result = {}
    for name in before:
        within, beyond = (
            None if a is None or b is None else LossPair(tokens=a.tokens, before=a.nll, after=b.nll)
            for a, b in zip(before[name], after[name], strict=True)
        )
        assert within is not None
        result[name] = SourceLoss(
            share=round(shares.get(name, 0.0), 6),
            suggested_share=round(raised[name] / total, 6) if total else 0.0,
            within=within,
            beyond=beyond,
        )
    return result


def token_shares(recipe: Recipe, stage_steps: Sequence[int]) -> dict[str, float]:
    """Share of the trained tokens by source. stage_steps: optimizer steps of each stage."""
    tokens: dict[str, float] = {}
    for stage, steps in zip(recipe.body.stages, stage_steps, strict=True):
        for name, share in recipe.mix(stage).items():
            trained = steps * stage.batch * recipe.window(stage) * share
            tokens[name] = tokens.get(name, 0.0) + trained
    total = sum(tokens.values())
    return {name: count / total for name, count in tokens.items()} if total else {}


def _mean(nll: Tensor, valid: Tensor) -> SpanNll | None:
    count = int(valid.sum())
    return SpanNll(round(float(nll.sum()) / count, 6), count) if count else None


def _change(before: SpanNll | None, after: SpanNll | None) -> float:
    assert before is not None
    assert after is not None
    return after.nll - before.nll
