"""`long_dependency`: documents whose later tokens need distant context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from regraft.checkpoint.read.source import Checkpoint
from regraft.data.build.document import Document
from regraft.data.build.kept import kept
from regraft.data.build.scoring.causal_scorer import CausalScorer
from regraft.data.build.scoring.context_gain import answer_nll, measure
from regraft.data.build.scoring.selection import select
from regraft.data.build.step import Context, Step
from regraft.device import pick_device
from regraft.errors import InputError
from regraft.recipe_values import Count, Number, Positive, Share, Tokens
from regraft.rope import ContextSpec

MESSAGES = "messages"


class LongDependency(Step):
    """Keep documents whose later tokens a model predicts better with all context than with the
    last tokens alone: the context gain, in nats per token, with copied text counted as 0. Of
    question-and-answer samples drop those that the last tokens answer.

    LongPPL's statistic (arXiv 2410.23771). A document costs about 2.5 forward passes of the model
    for the first window and 1.5 for each further one.
    """

    name: ClassVar[str] = "long_dependency"
    model: str = Field(description="any causal language model: a folder or org/name[@revision]")
    windows: Annotated[list[Tokens], Field(min_length=1)] = Field(
        default=[200, 2048],
        description="last tokens that are compared with all context; each gives a score, and the "
        "last one decides",
    )
    context: Tokens | None = Field(
        default=None,
        description="most tokens that the model reads at once; longer documents are scored in "
        "pieces. Default: its context length",
    )
    copied_run: Count = Field(
        default=12, description="tokens in a row that count as a copy of distant context"
    )
    least: Number | None = Field(default=None, description="least gain, in nats per token")
    share: Share | None = Field(default=None, description="of the documents with the highest gain")
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

    @property
    def independent(self) -> bool:
        return self.share is None

    def check(self) -> None:
        with Checkpoint.open(self.model) as checkpoint:
            spec = ContextSpec.from_config(checkpoint.config)
        length = self.context or spec.max_position_embeddings
        if 2 * max(self.windows) > length:
            raise InputError(
                f"{self.model} reads {length:,} tokens at once, and a window of "
                f"{max(self.windows):,} needs twice as many; give smaller `windows`, or a model "
                "with a longer context."
            )

    def inputs(self) -> list[str]:
        return [self.model] if Path(self.model).is_dir() else []

    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        scorer = kept(CausalScorer.open, self.model, pick_device(context.device))
        scored = self._answers if self.answer else self._gains
        return select(
            scored(documents, context, scorer), context, self._score(self.windows[-1]),
            least=self.least, share=self.share,
        )  # fmt: skip

    def _score(self, window: int) -> str:
        return f"{self.name}.{'answer' if self.answer else 'gain'}_{window}"

    def _gains(
        self, documents: Iterator[Document], context: Context, scorer: CausalScorer
    ) -> Iterator[Document]:
        length = min(self.context or scorer.context, scorer.context)
        for document in documents:
            ids = scorer.ids(document.text)
            gains = measure(scorer, ids, self.windows, context=length, run=self.copied_run)
            scores = {self._score(window): gain.mean for window, gain in gains.items()}
            last = gains[self.windows[-1]]
            scores |= {f"{self.name}.key": last.key, f"{self.name}.copied": last.copied}
            yield _scored(document, scores, context)

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
            nll = {window: answer_nll(scorer, ids, span, window) for window in self.windows}
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
