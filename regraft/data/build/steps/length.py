"""Documents of the right length: by length dropped, cut, upsampled or joined.

Upsampling is that of "Data Engineering for Scaling Language Models to 128K Context" (arXiv
2402.10171): the tokens of a source stay as many as they were, and with them the shares of domains,
while long documents get a larger share of them: each is repeated, and short ones are left out at
random. There by two classes (30 to 70% for documents of 4k or more), here by any number.

Order of the parts: `minimum`, `maximum` (cut), `buckets` and `shares`, `join`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field, model_validator

from regraft.data.build.document import Document
from regraft.data.build.step import Context, Step
from regraft.data.build.steps.copies import Copies
from regraft.data.build.steps.cutting import Cutter, skip_space
from regraft.data.build.tokens import count_tokens
from regraft.errors import InputError
from regraft.recipe_values import Positive, Share, Tokens
from regraft.units import format_tokens


class Length(Step):
    """Drop short documents, cut long ones between paragraphs, upsample by length, join to a length.

    Lengths are in tokens.
    """

    name: ClassVar[str] = "length"
    minimum: Tokens | None = Field(default=None, description="drop shorter documents")
    maximum: Tokens | None = Field(
        default=None,
        description="cut longer documents into pieces of at most this, between paragraphs if there "
        "is an end of one in the last quarter of a piece, else sentences, else words; a last piece "
        "below `minimum` is dropped",
    )
    buckets: list[Tokens] = Field(
        default=[], description="lengths at which a class of documents ends and the next begins"
    )
    shares: list[Share] = Field(
        default=[],
        description="of the source's tokens for every class, one more than `buckets`: documents "
        "are repeated or left out until it is so, and the tokens of the source stay as many",
    )
    repeat: Positive = Field(
        default=8.0, description="most copies of a document, on average over its class"
    )
    join: Tokens | None = Field(
        default=None,
        description="join documents one after another to this length, the last one cut",
    )
    separator: str = Field(default="\n\n", description="join: what is put between documents")

    @model_validator(mode="after")
    def _consistent(self) -> Length:
        if self.shares and len(self.shares) != len(self.buckets) + 1:
            raise ValueError(f"{len(self.buckets)} buckets need {len(self.buckets) + 1} shares")
        if self.shares and not math.isclose(sum(self.shares), 1, abs_tol=1e-6):
            raise ValueError(f"the shares add up to {sum(self.shares):g}, not to 1")
        if sorted(set(self.buckets)) != self.buckets:
            raise ValueError("buckets must rise")
        if self.minimum and self.maximum and self.minimum > self.maximum:
            raise ValueError("minimum is above maximum")
        return self

    @property
    def independent(self) -> bool:
        """Unless it upsamples or joins."""
        return not self.shares and self.join is None

    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        """The documents of the lengths that the keys ask for, with their tokens."""
        documents = count_tokens(documents, context.counter)
        if self.minimum is not None or self.maximum is not None:
            documents = self._cut(documents, context)
        if self.buckets:
            documents = self._classed(documents, context)
        if self.shares:
            documents = self._upsampled(documents, context)
        if self.join is not None:
            documents = self._joined(documents, context, self.join)
        return documents

    def _cut(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        least, statistics = self.minimum or 0, context.statistics
        cutter = Cutter(context.counter)
        for document in documents:
            assert document.tokens is not None
            if document.tokens < least:
                statistics.drop("too short")
            elif self.maximum is None or document.tokens <= self.maximum:
                yield document
            else:
                _refuse_messages(document)
                statistics.count("cut documents")
                pieces = cutter.pieces(document.text, self.maximum)
                for number, (text, tokens) in enumerate(pieces, 1):
                    if tokens < least:
                        statistics.count("last pieces below the minimum")
                    else:
                        yield document.with_text(text, tokens=tokens, id=f"{document.id}#{number}")

    def _classed(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        for document in documents:
            context.statistics.count(f"{self._class_name(self._class(document))} before")
            yield document

    def _class(self, document: Document) -> int:
        assert document.tokens is not None  # counted when it was read or cut
        return sum(document.tokens >= edge for edge in self.buckets)

    def _class_name(self, number: int) -> str:
        edges = [format_tokens(edge) for edge in self.buckets]
        if number == 0:
            return f"below {edges[0]}"
        return f"{edges[number - 1]} or more" + (
            f" and below {edges[number]}" if number < len(edges) else ""
        )

    def _upsampled(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        """Copies of every document, by the factor of its class, in rounds: the copies of a document
        are far apart."""
        tokens = [0] * len(self.shares)

        def counted() -> Iterator[Document]:
            for document in documents:
                tokens[self._class(document)] += document.tokens or 0
                yield document

        with context.spool(counted()) as spool:
            factors = self._factors(tokens, context)
            for turn in range(math.ceil(max(factors))):
                plan = [Copies(factor) for factor in factors]
                for document in spool:
                    i = self._class(document)
                    copies = plan[i].next(document.tokens or 0)
                    if turn == 0 and copies == 0:
                        context.statistics.drop(f"left out, {self._class_name(i)}")
                    if turn < copies:
                        name = document.id if turn == 0 else f"{document.id}#{turn + 1}"
                        if turn:
                            context.statistics.count(f"copies, {self._class_name(i)}")
                        yield document.with_text(document.text, tokens=document.tokens, id=name)

    def _factors(self, tokens: list[int], context: Context) -> list[float]:
        """How often the documents of each class are taken, on average."""
        whole = sum(tokens)
        result = []
        for i, (own, share) in enumerate(zip(tokens, self.shares, strict=True)):
            factor = share * whole / own if own else 0.0
            if own and factor > self.repeat:
                context.statistics.count(
                    f"{self._class_name(i)}: percent of the tokens that were asked for",
                    round(100 * self.repeat / factor),
                )
            result.append(min(factor, self.repeat))
        return result

    def _joined(
        self, documents: Iterator[Document], context: Context, target: int
    ) -> Iterator[Document]:
        """Documents one after another, cut at `target`; the rest begins the next text."""
        cutter, counter = Cutter(context.counter), context.counter
        first: Document | None = None  # of the texts that wait
        texts: list[str] = []
        number = total = 0
        for document in documents:
            _refuse_messages(document)
            if first is None or first.source != document.source:
                if texts:
                    context.statistics.count("tokens of unfinished texts", total)
                first, texts, number, total = document, [], 0, 0
            texts.append(document.text)
            total += (document.tokens or 0) + (len(self.separator) if len(texts) > 1 else 0)
            if total < target:
                continue
            text = self.separator.join(texts)
            (total,) = counter.lengths([text])
            start = 0
            while total >= target:
                stop = cutter.end(text, start, target)
                piece = text[start:stop].rstrip()
                (tokens,) = counter.lengths([piece])
                number += 1
                yield first.with_text(piece, tokens=tokens, id=f"{first.id}#joined{number}")
                begin, start = start, skip_space(text, stop)
                total -= counter.lengths([text[begin:start]])[0] - counter.special
                if total < 2 * target:  # near the end of the text it has to be exact
                    total = counter.lengths([text[start:]])[0] if start < len(text) else 0
            if start:  # else the texts are a little shorter than the sum of their tokens
                text = text[start:]
                first, number = (
                    (document, number if first is document else 0) if text else (None, 0)
                )
            texts = [text] if text else []
        if texts:
            context.statistics.count("tokens of unfinished texts", total)


def _refuse_messages(document: Document) -> None:
    if document.messages is not None:
        raise InputError(
            f"The step length cuts and joins text, and '{document.source}' has conversations; use "
            "the step chat for them."
        )
