"""`long_dependency`: documents whose later tokens need distant context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.data.build.document import Document
from regraft.data.build.process_cache import cached
from regraft.data.build.scoring import context_gain, segment_dependency
from regraft.data.build.scoring.attention_distance import (
    FirstLayer,
    check_first_layer,
    standard_scores,
)
from regraft.data.build.scoring.causal_scorer import CausalScorer
from regraft.data.build.scoring.selection import select
from regraft.data.build.step import Context, Step
from regraft.device import pick_device
from regraft.errors import InputError
from regraft.recipe_values import Count, Number, Positive, Share, Tokens

MESSAGES = "messages"
_FEWEST = 16  # tokens of a piece in which distances are compared
_MEASURES = {
    "windows": ("context_gain",),
    "copied_run": ("context_gain",),
    "answer": ("context_gain",),
    "answered": ("context_gain",),
    "context": ("context_gain", "longattn"),
    "segment": ("lds",),
    "pairs": ("lds",),
}
"""The measures that a key is for."""


class LongDependency(Step):
    """Keep documents whose later tokens depend on distant ones, by one of three measures.

    context_gain (LongPPL's statistic, arXiv 2410.23771): how much better a model predicts the later
    tokens with all context than with the last tokens alone, in nats per token, with copied text
    counted as 0. Of question-and-answer samples drop those that the last tokens answer. About 2.5
    forward passes of the model for the first window and 1.5 for each further one.

    lds (ProLong's score, arXiv 2405.17915): how much a segment helps to predict a later one, over
    a sample of pairs; four to six passes over 32k tokens, no more over longer documents.

    longattn (arXiv 2502.16860): the share of the first layer's attention that reaches back a
    quarter of the text or more, and how evenly, compared with the other documents of the source;
    one layer of one pass.
    """

    name: ClassVar[str] = "long_dependency"
    model: str = Field(description="any causal language model: a folder or org/name[@revision]")
    measure: Literal["context_gain", "lds", "longattn"] = Field(
        default="context_gain", description="what is measured; the score that decides"
    )
    windows: Annotated[list[Tokens], Field(min_length=1)] = Field(
        default=[200, 2048],
        description="context_gain: last tokens that are compared with all context; each gives a "
        "score, and the last one decides",
    )
    context: Tokens | None = Field(
        default=None,
        description="context_gain, longattn: most tokens that the model reads at once; longer "
        "documents are scored in pieces. Default: its context length",
    )
    segment: Tokens = Field(default=128, description="lds: length of a segment")
    pairs: Count = Field(default=500, description="lds: most pairs of segments for a document")
    copied_run: Count = Field(
        default=12,
        description="context_gain: tokens in a row that count as a copy of distant context",
    )
    least: Number | None = Field(
        default=None, description="least score; of context_gain in nats per token"
    )
    share: Share | None = Field(default=None, description="of the documents with the highest score")
    answer: str | None = Field(
        default=None,
        description="score the answers of samples: the metadata with the answer, or messages for "
        "the last turn of the assistant",
    )
    answered: Positive = Field(
        default=0.7,
        description="answer: drop samples whose answer has a lower NLL given the last tokens "
        "alone (the first of `windows`), in nats per token",
    )

    @model_validator(mode="after")
    def _keys_of_the_measure(self) -> LongDependency:
        for key in sorted(self.model_fields_set & _MEASURES.keys()):
            if self.measure not in _MEASURES[key]:
                raise ValueError(f"{key} is for measure: {' or '.join(_MEASURES[key])}")
        if self.segment < 2:
            raise ValueError("segment: the first token of a segment is not scored; give 2 or more")
        return self

    @property
    def independent(self) -> bool:
        return self.share is None and self.measure != "longattn"

    @property
    def uses_device(self) -> bool:
        return True

    def check(self) -> None:
        with Checkpoint.open(self.model) as checkpoint:
            most = checkpoint_context(checkpoint).max_position_embeddings
            length = min(self.context or most, most)
            if self.measure == "longattn":
                self._check_attention(checkpoint, length)
        if self.measure == "lds" and 2 * self.segment >= most:
            raise InputError(
                f"{self.model} reads {most:,} tokens at once, and a pair of segments has "
                f"{2 * self.segment:,} and a token before them; give a smaller `segment`."
            )
        if self.measure != "context_gain":
            return
        if 2 * max(self.windows) > length:
            raise InputError(
                f"{self.model} reads {length:,} tokens at once, and a window of "
                f"{max(self.windows):,} needs twice as many; give smaller `windows`, or a model "
                "with a longer context."
            )

    def _check_attention(self, checkpoint: Checkpoint, length: int) -> None:
        if length < _FEWEST:
            raise InputError(
                f"no attention reaches far within {length} tokens; give a `context` of {_FEWEST} "
                "or more."
            )
        check_first_layer(checkpoint, length)

    def inputs(self) -> list[str]:
        return [self.model] if Path(self.model).is_dir() else []

    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        device = pick_device(context.device)
        if self.measure == "longattn":
            layer = cached(FirstLayer.open, self.model, device)
            scored = self._standardised(self._distances(documents, context, layer), context)
        else:
            scorer = cached(CausalScorer.open, self.model, device)
            measure = self._dependencies if self.measure == "lds" else self._gains
            scored = (self._answers if self.answer else measure)(documents, context, scorer)
        return select(scored, context, self._decisive, least=self.least, share=self.share)

    @property
    def _decisive(self) -> str:
        """The score that decides."""
        if self.measure == "context_gain":
            return self._score(self.windows[-1])
        return f"{self.name}.{self.measure}"

    def _score(self, window: int) -> str:
        return f"{self.name}.{'answer' if self.answer else 'gain'}_{window}"

    def _gains(
        self, documents: Iterator[Document], context: Context, scorer: CausalScorer
    ) -> Iterator[Document]:
        length = min(self.context or scorer.context, scorer.context)
        for document in documents:
            ids = scorer.ids(document.text)
            gains = context_gain.measure(
                scorer, ids, self.windows, context=length, run=self.copied_run
            )
            scores = {self._score(window): gain.mean for window, gain in gains.items()}
            last = gains[self.windows[-1]]
            scores |= {f"{self.name}.key": last.key, f"{self.name}.copied": last.copied}
            yield _scored(document, scores, context)

    def _dependencies(
        self, documents: Iterator[Document], context: Context, scorer: CausalScorer
    ) -> Iterator[Document]:
        for document in documents:
            result = segment_dependency.measure(
                scorer, scorer.ids(document.text), segment=self.segment, pairs=self.pairs,
                rng=context.rng(document.id),
            )  # fmt: skip
            scores = {self._decisive: result.score, f"{self.name}.strong": result.strong}
            yield _scored(document, scores, context)

    def _distances(
        self, documents: Iterator[Document], context: Context, layer: FirstLayer
    ) -> Iterator[Document]:
        length = min(self.context or layer.context, layer.context)
        for document in documents:
            result = layer.measure(layer.ids(document.text), length)
            scores = {
                f"{self.name}.strength": result.strength,
                f"{self.name}.variance": result.variance,
            }
            yield _scored(document, scores, context)

    def _standardised(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        """Documents with LongAttn's score, which compares them with each other."""
        with context.spool(documents) as spool:
            table = np.array(
                [(one.scores[f"{self.name}.strength"], one.scores[f"{self.name}.variance"])
                 for one in spool]
            ).reshape(-1, 2)  # fmt: skip
            for document, score in zip(spool, standard_scores(table), strict=True):
                yield _scored(document, {self._decisive: float(score)}, context)

    def _answers(
        self, documents: Iterator[Document], context: Context, scorer: CausalScorer
    ) -> Iterator[Document]:
        for document in documents:
            answer = self._answer(document)
            at = document.text.rfind(answer) if answer else -1
            ids, span = scorer.span(document.text, at, at + len(answer))
            if at < 0 or span[0] < 1 or span[1] > scorer.context:
                context.statistics.drop("no answer after a text within the model's context")
                continue
            nll = {
                window: context_gain.answer_nll(scorer, ids, span, window)
                for window in self.windows
            }
            scores = {self._score(w): short - full for w, (short, full) in nll.items()}
            short, full = nll[self.windows[0]]
            scores |= {f"{self.name}.answer_nll": full, f"{self.name}.answer_nll_last": short}
            document = _scored(document, scores, context)
            if short < self.answered:
                context.statistics.drop(f"answered by the last {self.windows[0]} tokens")
            else:
                yield document

    def _answer(self, document: Document) -> str:
        """The answer of a sample; empty where it has none."""
        if self.answer != MESSAGES:
            return document.metadata.get(str(self.answer), "")
        said = [one.content for one in document.messages or () if one.role == "assistant"]
        return said[-1] if said else ""


def _scored(document: Document, scores: Mapping[str, float], context: Context) -> Document:
    """The document with scores of six digits, which are counted."""
    rounded = {name: float(f"{value:.6g}") for name, value in scores.items()}
    for name, value in rounded.items():
        context.statistics.score(name, value)
    return document.with_scores(rounded)
