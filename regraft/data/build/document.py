"""A document on its way through the steps of a build."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Message(NamedTuple):
    """One turn of a conversation. role: 'system', 'user', 'assistant' or 'tool'."""

    role: str
    content: str


@dataclass(frozen=True)
class Document:
    """Text with where it came from and what steps found out about it.

    id: unique in its source; a step that makes several documents of one adds '#1', '#2'. source:
    name of the source in the recipe. scores: numbers of steps, by name ('quality.gzip'); metadata:
    text of steps, by name. messages: of a conversation, whose `text` is what steps on text read.
    tokens: of `text` by the tokenizer of the recipe, where they are known.
    """

    text: str
    id: str
    source: str
    scores: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    messages: tuple[Message, ...] | None = None
    tokens: int | None = None

    def with_text(self, text: str, *, id: str | None = None, tokens: int | None = None) -> Document:
        """The document with another text, whose tokens are not known unless they are given."""
        return replace(self, text=text, id=self.id if id is None else id, tokens=tokens)

    def with_scores(self, scores: Mapping[str, float]) -> Document:
        """The document with more scores."""
        return replace(self, scores={**self.scores, **scores})

    def with_metadata(self, metadata: Mapping[str, str]) -> Document:
        """The document with more metadata."""
        return replace(self, metadata={**self.metadata, **metadata})

    def to_line(self) -> str:
        """One line of JSON, from which `from_line` makes an equal document."""
        value: dict[str, object] = {"text": self.text, "id": self.id, "source": self.source}
        if self.scores:
            value["scores"] = dict(self.scores)
        if self.metadata:
            value["metadata"] = dict(self.metadata)
        if self.messages is not None:
            value["messages"] = [list(message) for message in self.messages]
        if self.tokens is not None:
            value["tokens"] = self.tokens
        return json.dumps(value, ensure_ascii=False) + "\n"

    @classmethod
    def from_line(cls, line: str | bytes) -> Document:
        """The document of a line of `to_line`."""
        value = json.loads(line)
        if "messages" in value:
            value["messages"] = tuple(Message(*message) for message in value["messages"])
        return cls(**value)
