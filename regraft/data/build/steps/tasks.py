"""`tasks`: facts hidden in documents, or passages cut out, with questions at their end."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from regraft.data.boundaries import split
from regraft.data.build.document import Document
from regraft.data.build.generation.episodes import KINDS
from regraft.data.build.generation.far_middle import far_middle
from regraft.data.build.generation.questions import Form, ask_at_end
from regraft.data.build.statistics import Statistics
from regraft.data.build.step import Context, Step
from regraft.data.build.tokens import count_tokens
from regraft.data.generate.hiding import hide
from regraft.recipe_values import Count, Share, Tokens

Kind = Literal["retrieval", "chains", "tracking", "aggregation", "many_shot", "far_middle"]
_CONVERSATION = "conversations left as they are"
_NO_PASSAGE = "no passage to cut out"
_FEWEST, _MOST = 8, 2000  # facts
_NEAREST = 0.005  # of the text, from its end


class Tasks(Step):
    """Hide facts in documents and ask for them at the end: retrieval, chains of facts, states that
    change, totals, rules shown by many examples. Distances of facts from the end are log-uniform,
    so that all scales occur; facts whose order matters are spread evenly. Or cut sentences out of
    the first half and ask for them (`far_middle`). Conversations, and documents without a sentence
    to cut out, stay as they are and are counted; a source with nothing else gives a warning.

    The questions of evaluation have other wordings, keys and values. The last question and answer
    of a document are in its metadata, for `long_dependency`.
    """

    name: ClassVar[str] = "tasks"
    share: Share = Field(default=0.1, description="of the documents that get questions")
    kinds: Annotated[list[Kind], Field(min_length=1)] = Field(
        default=list(get_args(Kind)), description="one is drawn for each document"
    )
    every: Tokens = Field(
        default=256, description="tokens of a document for each fact; 8 to 2,000 facts in all"
    )
    questions: Count = Field(default=4, description="most at the end of a document")
    form: Form = Field(
        default="text",
        description="text: questions and answers follow the text; messages: a conversation, whose "
        "answers are turns of the assistant",
    )

    @property
    def independent(self) -> bool:
        return True

    def warnings(self, statistics: Statistics) -> list[str]:
        return [
            f"No document of '{source}' has a task of the step {statistics.step} ("
            + ", ".join(f"{name}: {number:,}" for name, number in counts.items())
            + "); leave the step out for this source, or give it other kinds."
            for source, counts in statistics.by_source.items()
            if counts.keys() <= {_CONVERSATION, _NO_PASSAGE}
        ]

    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        for document in count_tokens(documents, context.counter):
            rng = random.Random(int(context.rng(document.id).integers(2**62)))
            if document.messages is not None:
                context.statistics.count(_CONVERSATION, source=document.source)
                yield document
            elif rng.random() >= self.share:
                yield document
            else:
                yield self._with_task(document, rng, context)

    def _with_task(self, document: Document, rng: random.Random, context: Context) -> Document:
        kind = rng.choice(self.kinds)
        if kind == "far_middle":
            return self._without_passages(document, rng, context)
        count = min(_MOST, max(_FEWEST, (document.tokens or 0) // self.every))
        episode = KINDS[kind](rng, count, self.questions)
        depths = [_depth(rng) for _ in episode.facts]
        if episode.ordered:
            depths = sorted(rng.random() for _ in episode.facts)
        sentences = split(document.text)
        text = hide(sentences, [f"{fact} " for fact in episode.facts], depths).rstrip()
        context.statistics.count(kind, source=document.source)
        made = ask_at_end(document, text, episode.queries, self.form)
        return made.with_metadata({self.name: kind})

    def _without_passages(
        self, document: Document, rng: random.Random, context: Context
    ) -> Document:
        gaps = rng.randint(1, self.questions)
        made = far_middle(rng, document.text, gaps, context.counter)
        outcome = "far_middle" if made else _NO_PASSAGE
        context.statistics.count(outcome, source=document.source)
        if made is None:
            return document
        document_with_questions = ask_at_end(document, made.text, made.queries, self.form)
        return document_with_questions.with_metadata({self.name: "far_middle"})


def _depth(rng: random.Random) -> float:
    """A place in a text, 0 to 1, whose distance from the end is log-uniform."""
    return 1 - math.exp(rng.uniform(math.log(_NEAREST), 0))
