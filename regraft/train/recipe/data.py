"""Blocks of a recipe on text: its sources, and the share that is held out."""

from __future__ import annotations

import typing
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from regraft.data.sources import Kind
from regraft.recipe_values import Block, Count, Located, Positive, Share


class Source(Located[Kind]):
    """One body of text."""

    kinds: ClassVar[tuple[str, ...]] = typing.get_args(Kind)
    name: str = Field(description="by which the rest of the recipe refers to it")
    text: str | None = Field(default=None, description="a file, folder or glob; a file a document")
    jsonl: str | None = Field(default=None, description="a file, folder or glob; a line a document")
    parquet: str | None = Field(default=None, description="needs pyarrow")
    hub: str | None = Field(default=None, description="a Hub dataset, needs datasets")
    synthetic: Literal["notes", "chats"] | None = Field(
        default=None,
        description="generated: prose with facts and questions about them; or chats of the same, "
        "for the chat template of a toy",
    )
    field: str | None = Field(
        default=None,
        description="of a jsonl line, or the column; default: text, and with chat: messages, "
        "conversations, or prompt and response",
    )
    chat: bool = Field(
        default=False,
        description="of jsonl, parquet and hub: a record is a conversation, which the model's chat "
        "template renders",
    )
    loss_on: Literal["assistant", "all", "last"] = Field(
        default="assistant",
        description="chat: learn the assistant's turns with their end-of-turn tokens, or all "
        "tokens, or the last of these turns",
    )
    split: str = Field(default="train", description="of a Hub dataset")
    separator: str | None = Field(
        default=None, description="text: what separates the documents in a file"
    )
    documents: Count = Field(default=1000, description="synthetic: how many")
    words: Count = Field(default=1024, description="synthetic: length of each")
    prose: Share = Field(default=0.45, description="synthetic: share of plain sentences")
    questions: Share = Field(
        default=0.65, description="synthetic: share of questions among facts and questions"
    )
    shout: Share = Field(
        default=0.0, description="synthetic: share of documents answered in upper case"
    )
    rows: Literal["whole", "packed", "joined"] = Field(
        default="whole",
        description="whole: a row holds one document or a window of it; packed: short documents "
        "best-fit, separated by masks; joined: documents one after another, cut at the length. "
        "With whole and packed a long chat is cut between two exchanges",
    )

    @model_validator(mode="after")
    def _chat_of_records(self) -> Source:
        if self.chat and self.kind == "text":
            raise ValueError("a text file has no conversations; give jsonl, parquet or hub")
        if self.chat != (self.synthetic == "chats") and self.kind == "synthetic":
            raise ValueError(f"say chat: {str(not self.chat).lower()} for {self.synthetic}")
        if self.loss_on != "assistant" and not self.chat:
            raise ValueError("loss_on is for conversations; say chat: true")
        return self


class Data(Block):
    """All text of the run."""

    sources: list[Source] = Field(
        default=[], description="bodies of text; required unless `built` is given"
    )
    built: str | None = Field(
        default=None,
        description="a folder of `regraft data build`, whose sources and mixes are added",
    )
    mixes: dict[str, Annotated[dict[str, Positive], Field(min_length=1)]] = Field(
        default={}, description="shares of rows by source, by a name for the `mix` of stages"
    )
    masks: bool = Field(default=True, description="attention is only within a document")
    held_out: Share = Field(
        default=0.02,
        description="share of documents that are not trained on, for `watch` and `recover`",
    )
    cache: str | None = Field(default=None, description="folder of tokenised text")
