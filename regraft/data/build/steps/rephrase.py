"""`rephrase`: passages in other words, or questions about them, by a model behind a URL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from regraft.cache import folder as cache_folder
from regraft.data.boundaries import pieces_at
from regraft.data.build.document import Document
from regraft.data.build.generation.questions import (
    Form,
    ask_at_end,
    copied_share,
    problem_of_query,
    read_query,
)
from regraft.data.build.generation.replies import Replies
from regraft.data.build.generation.restructure import even_cuts
from regraft.data.build.step import Context, Step
from regraft.recipe_values import Count, Positive, Share, Tokens

_PASSAGES = """\
Write the following passage in other words. Keep every fact, name and number, its order and about \
its length. Reply with the new passage alone.

{text}"""
_QUESTIONS = """\
Write one question about the following passage that a reader of the whole work could be asked. It \
must name what it is about, must not speak of 'the passage', and its answer must be a few words \
that stand in the passage. Reply in two lines:
Question: ...
Answer: ...

{text}"""
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


class Rephrase(Step):
    """Have a model behind an OpenAI-compatible endpoint write passages in other words, or questions
    with answers over the pieces of long documents.

    A passage is kept as it was where the new one is too short, too long or a copy. A question is
    left out where its answer is not in its piece, or is in another piece of the document, or where
    it speaks of "the passage". `long_dependency` with `answer: answer` then drops documents whose
    last question the last tokens answer. Replies are kept in files: no prompt is sent twice, and a
    build that is resumed asks for what it lacks alone.
    """

    name: ClassVar[str] = "rephrase"
    kind: Literal["passages", "questions"] = Field(description="what is written")
    url: str = Field(description="OpenAI-compatible, such as http://localhost:8000/v1")
    model: str = Field(description="its name at the endpoint")
    prompt: str | None = Field(
        default=None,
        description="with {text} for the piece; questions: must ask for a line 'Question: ...' and "
        "a line 'Answer: ...'. Default: one of our own",
    )
    size: Tokens = Field(default=2048, description="tokens of a piece, about")
    share: Share = Field(default=1.0, description="of the pieces (passages) or documents")
    questions: Count = Field(default=4, description="questions: most for a document")
    form: Form = Field(default="text", description="of questions and answers, as in `tasks`")
    lengths: tuple[Positive, Positive] = Field(
        default=(0.6, 1.6), description="passages: least and most characters for each of the old"
    )
    copied: Share = Field(
        default=0.3, description="passages: most of the new one in runs of 8 words of the old"
    )
    replies: str | None = Field(
        default=None, description="folder of the replies; default: in the cache of the user"
    )
    temperature: Annotated[float, Field(ge=0)] = Field(default=0.7, description="of the endpoint")
    most: Tokens = Field(default=4096, description="tokens of a reply")
    requests: Count = Field(default=8, description="under way at once")
    timeout: Positive = Field(default=120.0, description="seconds for a whole reply")

    @model_validator(mode="after")
    def _has_text(self) -> Rephrase:
        if self.prompt is not None and "{text}" not in self.prompt:
            raise ValueError("the prompt has no {text}, where the piece is put")
        return self

    def check(self) -> None:
        self._replies()

    def check_server(self) -> None:
        self._replies().check()

    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        replies = self._replies()
        change = self._with_questions if self.kind == "questions" else self._in_other_words
        while batch := list(islice(documents, self.requests)):
            pieces = [self._pieces(document, context) for document in batch]
            chosen = [
                self._choose(document, own, context)
                for document, own in zip(batch, pieces, strict=True)
            ]
            answers = iter(replies.answer(
                self._prompt(own[at])
                for own, places in zip(pieces, chosen, strict=True)
                for at in places
            ))  # fmt: skip
            for document, own, places in zip(batch, pieces, chosen, strict=True):
                said = {at: next(answers) for at in places}
                yield change(document, own, said, context) if said else document

    def _replies(self) -> Replies:
        folder = Path(self.replies) if self.replies else (cache_folder() or Path()) / "replies"
        return Replies(
            self.url, self.model, folder, temperature=self.temperature, most=self.most,
            timeout=self.timeout, requests=self.requests,
        )  # fmt: skip

    def _prompt(self, text: str) -> str:
        own = _QUESTIONS if self.kind == "questions" else _PASSAGES
        return (self.prompt or own).replace("{text}", text.strip())

    def _pieces(self, document: Document, context: Context) -> list[str]:
        if document.messages is not None:
            return []
        ends = context.counter.ends(document.text)
        return pieces_at(document.text, even_cuts(ends, self.size))

    def _choose(self, document: Document, pieces: list[str], context: Context) -> list[int]:
        """The pieces that a prompt is sent for."""
        rng = context.rng(document.id)
        if self.kind == "passages":
            return [at for at in range(len(pieces)) if rng.random() < self.share]
        if rng.random() >= self.share:
            return []
        return [int(at) for at in rng.permutation(len(pieces))[: self.questions]]

    def _in_other_words(
        self, document: Document, pieces: list[str], said: dict[int, str | None], context: Context
    ) -> Document:
        texts = list(pieces)
        for at, reply in said.items():
            new = _clean(reply)
            problem = self._problem_of_passage(pieces[at].strip(), new)
            context.statistics.count(problem or "passages in other words")
            if problem is None:
                end = pieces[at][len(pieces[at].rstrip()) :]
                texts[at] = new + end
        return document.with_text("".join(texts)).with_metadata({self.name: self.model})

    def _problem_of_passage(self, old: str, new: str) -> str | None:
        if not new:
            return "no reply"
        if not self.lengths[0] <= len(new) / max(1, len(old)) <= self.lengths[1]:
            return "too short or too long"
        return "a copy" if copied_share(old, new) > self.copied else None

    def _with_questions(
        self, document: Document, pieces: list[str], said: dict[int, str | None], context: Context
    ) -> Document:
        queries = []
        for at, reply in said.items():
            query = read_query(_clean(reply))
            problem = (
                "no question and answer" if query is None else problem_of_query(query, pieces, at)
            )
            context.statistics.count(problem or "questions")
            if query is not None and problem is None:
                queries.append(query)
        if not queries:
            return document
        made = ask_at_end(document, document.text.rstrip(), queries, self.form)
        return made.with_metadata({self.name: self.model})


def _clean(reply: str | None) -> str:
    return _THOUGHT.sub("", reply or "").strip()
