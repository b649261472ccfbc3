"""`structure`: long documents made of short ones, so that reading them needs distant context."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from regraft.data.boundaries import pieces_at
from regraft.data.build.document import Document
from regraft.data.build.generation.restructure import (
    even_cuts,
    interleave,
    nearest,
    random_cuts,
    reorder,
    untie,
)
from regraft.data.build.scoring.embedding import Embedder, check_embedder, open_embedder
from regraft.data.build.step import Context, Step
from regraft.data.build.tokens import count_tokens
from regraft.device import pick_device
from regraft.recipe_values import Block, Count, Share, Tokens


class Marks(Block):
    """Text that is written between pieces."""

    tail: str = Field(default="\n<to {key}>", description="untie: before a cut, with its {key}")
    head: str = Field(default="<from {key}>\n", description="untie: after a cut, with its {key}")
    trace: str = Field(
        default="\n<cuts {keys}>", description="untie: after a document's end, with its {keys}"
    )
    passage: str = Field(
        default="<passage {number}>\n", description="reorder: before a passage, with its {number}"
    )
    order: str = Field(
        default="<order {numbers}>", description="reorder: at the end, with the right {numbers}"
    )

    @model_validator(mode="after")
    def _fields(self) -> Marks:
        names = {"tail": "key", "head": "key", "trace": "keys", "passage": "number",
                 "order": "numbers"}  # fmt: skip
        for mark, name in names.items():
            try:
                getattr(self, mark).format(**{name: ""})
            except (KeyError, IndexError, ValueError, AttributeError, TypeError):
                raise ValueError(f"{mark} takes {{{name}}} and no other braces") from None
        return self


class Structure(Step):
    """Make long documents of short ones: cut them and shuffle the pieces with keys at the cuts
    (untie), put the most similar pieces of others between the pieces of each (negatives), or put
    the passages of each in random order, followed by their right one (reorder).

    Untie the Knots (arXiv 2409.04774), NExtLong (arXiv 2501.12766). Cuts are at ends of sentences.
    Conversations are left as they are.
    """

    name: ClassVar[str] = "structure"
    kind: Literal["untie", "negatives", "reorder"] = Field(
        default="untie", description="what is done with documents"
    )
    length: Tokens = Field(
        default=65536, description="untie, negatives: most tokens of a document that is made"
    )
    share: Share = Field(
        default=0.8, description="of the documents to make that are made; the others stay apart"
    )
    pieces: tuple[Count, Count] = Field(
        default=(2, 3), description="untie: fewest and most pieces of a document"
    )
    size: Tokens = Field(default=2048, description="negatives, reorder: tokens of a piece, about")
    model: str | None = Field(
        default=None,
        description="negatives: embeddings, a folder of model2vec or a causal language model",
    )
    pool: Count = Field(default=256, description="negatives: documents that are compared")
    marks: Marks = Field(default=Marks(), description="text between pieces")

    @model_validator(mode="after")
    def _of_kind(self) -> Structure:
        if self.kind == "negatives" and self.model is None:
            raise ValueError("negatives need a model, for embeddings")
        if not 2 <= self.pieces[0] <= self.pieces[1]:
            raise ValueError("pieces are two numbers from 2, the smaller one first")
        return self

    @property
    def independent(self) -> bool:
        return self.kind == "reorder"

    @property
    def uses_device(self) -> bool:
        return self.kind == "negatives"

    def check(self) -> None:
        if self.model is not None and self.kind == "negatives":
            check_embedder(self.model)

    def inputs(self) -> list[str]:
        return [self.model] if self.model is not None and Path(self.model).is_dir() else []

    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        counted = count_tokens(documents, context.counter)
        if self.kind == "reorder":
            for document in counted:
                yield self._reordered(document, context)
            return
        embedder = None
        if self.kind == "negatives":
            embedder = open_embedder(str(self.model), pick_device(context.device))
        for _, of_source in groupby(counted, key=lambda document: document.source):
            for group in self._groups(of_source, context):
                if embedder is None:
                    yield from self._untied(group, context)
                else:
                    yield from self._interleaved(group, context, embedder)

    def _groups(self, documents: Iterator[Document], context: Context) -> Iterator[list[Document]]:
        """Documents whose tokens are at most `length` together, or a pool; a document that stays
        as it is is alone."""
        group: list[Document] = []
        tokens, marks = 0, self._tokens_of_marks(context)
        for document in documents:
            size = (document.tokens or 0) + marks
            full = tokens + size > self.length if self.kind == "untie" else len(group) == self.pool
            if full and group:
                yield group
                group, tokens = [], 0
            if document.messages is not None:
                context.statistics.count("conversations left as they are")
                yield [document]
            else:
                group.append(document)
                tokens += size
        if group:
            yield group

    def _tokens_of_marks(self, context: Context) -> int:
        """Tokens that untying adds to a document, at most."""
        names = ["bcdf0"] * (self.pieces[1] - 1)
        around = [self.marks.tail.format(key=n) + self.marks.head.format(key=n) for n in names]
        trace = self.marks.trace.format(keys=" ".join(names))
        return context.counter.lengths(["\n\n".join([*around, trace, ""])])[0]

    def _untied(self, group: list[Document], context: Context) -> Iterator[Document]:
        rng = context.rng(group[0].id)
        if len(group) < 2 or rng.random() >= self.share:
            yield from group
            return
        texts = []
        for document in group:
            count = int(rng.integers(self.pieces[0], self.pieces[1] + 1))
            cuts = random_cuts(context.counter.ends(document.text), count, rng)
            texts.append(pieces_at(document.text, cuts))
        marks = self.marks
        text = untie(texts, rng, tail=marks.tail, head=marks.head, trace=marks.trace)
        yield self._made(group[0], text, len(group), context)

    def _interleaved(
        self, group: list[Document], context: Context, embedder: Embedder
    ) -> Iterator[Document]:
        """Each document of a pool with the most similar pieces of the others between its own."""
        if len(group) < 2:
            yield from group
            return
        pieces = [self._pieces(document.text, context) for document in group]
        owners = np.repeat(np.arange(len(group)), [len(own) for own in pieces])
        flat = [piece for own in pieces for piece in own]
        vectors = embedder.embed(flat)
        start = 0
        for document, own in zip(group, pieces, strict=True):
            first, start = start, start + len(own)
            gaps = len(own) - 1
            if not gaps or context.rng(document.id).random() >= self.share:
                yield document
                continue
            # as many pieces in each gap as make the document `length` tokens long
            room = max(0, self.length - (document.tokens or 0)) // self.size
            used: set[int] = set()
            others: list[list[str]] = []
            for gap in range(gaps):
                count = room // gaps + (gap < room % gaps)
                ranked = nearest(vectors, owners, first + gap, count + len(used))
                chosen = [piece for piece in ranked if piece not in used][:count]
                used.update(chosen)
                others.append([flat[piece] for piece in chosen])
            made = interleave(own, others)
            yield self._made(document, made, 1 + len({owners[piece] for piece in used}), context)

    def _reordered(self, document: Document, context: Context) -> Document:
        rng = context.rng(document.id)
        passages = self._pieces(document.text, context) if document.messages is None else []
        if len(passages) < 3 or rng.random() >= self.share:
            return document
        text = reorder(passages, rng, passage=self.marks.passage, order=self.marks.order)
        return self._made(document, text, 1, context)

    def _pieces(self, text: str, context: Context) -> list[str]:
        return pieces_at(text, even_cuts(context.counter.ends(text), self.size))

    def _made(self, first: Document, text: str, parts: int, context: Context) -> Document:
        context.statistics.count("documents made")
        context.statistics.score(f"{self.name}.documents", parts)
        made = first.with_text(text).with_metadata({self.name: self.kind})
        return made.with_scores({f"{self.name}.documents": float(parts)})
