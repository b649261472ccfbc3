"""The schema of a data recipe: every key, its type, its default and what it means.

sources:
  - name: books
    licence: CC0-1.0
    jsonl: books/*.jsonl
    steps:
      - quality
      - length: {minimum: 16k}
steps:
  - dedup
output: {tokenizer: meta-llama/Meta-Llama-3-8B}
"""

from __future__ import annotations

import typing
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from regraft.data.build.executors.options import Executor
from regraft.data.build.registry import StepEntry
from regraft.recipe_values import Block, Bytes, Count, Located, Positive, Share

Kind = Literal["text", "jsonl", "parquet", "code", "html", "pdf", "hub"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Text = Annotated[str, Field(min_length=1)]


class Source(Located[Kind]):
    """One body of text, and the steps on it alone."""

    kinds: ClassVar[tuple[str, ...]] = typing.get_args(Kind)
    name: Name = Field(description="of its folder in the output, and in `mixes`")
    licence: Text = Field(description="of the text, for the card: an SPDX id or a few words")
    text: Text | None = Field(
        default=None, description="a file, folder (.txt, .md) or glob; a file a document"
    )
    jsonl: Text | None = Field(
        default=None, description="a file, folder or glob; a line a document"
    )
    parquet: Text | None = Field(default=None, description="a file, folder or glob; needs pyarrow")
    code: Text | None = Field(
        default=None, description="a folder or glob of folders; a folder a document"
    )
    html: Text | None = Field(
        default=None,
        description="a file, folder (.html, .htm, .xhtml) or glob; a page a document, its text "
        "without menus; needs trafilatura",
    )
    pdf: Text | None = Field(
        default=None, description="a file, folder or glob; a file a document; needs pypdfium2"
    )
    hub: Text | None = Field(
        default=None,
        description="a Hub dataset org/name[@revision] of Parquet files or JSON lines, which are "
        "read in place; needs datasets",
    )
    chat: bool = Field(
        default=False, description="jsonl, parquet, hub: a record is a conversation, not a text"
    )
    field: Text | None = Field(
        default=None,
        description="of a jsonl line, or the column; default: text; with chat: messages, "
        "conversations, or prompt and response",
    )
    format: Literal["plain", "html"] = Field(
        default="plain",
        description="jsonl, parquet, hub: what the field has; html: web pages, as of `html`",
    )
    id_field: Text | None = Field(
        default=None, description="the field with a document's id; default: file and place in it"
    )
    split: Text = Field(default="train", description="of a Hub dataset")
    subset: Text | None = Field(
        default=None, description="of a Hub dataset that has several (`configs` in its card)"
    )
    limit: Count | None = Field(
        default=None,
        description="jsonl, parquet, hub: read this many records, the first ones; of a Hub dataset "
        "little else is transferred",
    )
    separator: Text | None = Field(
        default=None, description="text: what separates the documents in a file"
    )
    order: Literal["path", "imports"] = Field(
        default="path",
        description="code: order of the files of a folder; imports: Python modules after those "
        "that they import",
    )
    encodings: Annotated[list[Text], Field(min_length=1)] = Field(
        default=["utf-8"],
        description="of text files, tried in this order; of web pages after the one that they "
        "state",
    )
    broken: Share = Field(
        default=0.001, description="share of lines or files that may be broken; they are left out"
    )
    books3: bool = Field(
        default=False, description="take text of Books3, whose books are under copyright"
    )
    rows: Literal["whole", "packed", "joined"] = Field(
        default="whole", description="how `regraft train` makes rows of it, see its recipe"
    )
    steps: list[StepEntry] = Field(default=[], description="on this source, in order")

    @model_validator(mode="after")
    def _texts_have_pages(self) -> Source:
        if self.chat and self.format == "html":
            raise ValueError("format: html is of texts, and chat: true of conversations")
        return self


class Output(Block):
    """What is written."""

    tokenizer: Text = Field(
        description="of the model that is trained, which counts tokens: a folder or "
        "org/name[@revision]; bytes: a byte is a token"
    )
    shard: Bytes = Field(default=256_000_000, description="text in one Parquet file, such as 256MB")


class Body(Block):
    """The keys of a data recipe."""

    sources: Annotated[list[Source], Field(min_length=1)] = Field(description="bodies of text")
    steps: list[StepEntry] = Field(
        default=[], description="on the documents of all sources, one source after another"
    )
    output: Output
    mixes: dict[Name, dict[str, Positive]] = Field(
        default={},
        description="shares of rows by source, by a name that a stage of `regraft train` may give "
        "as its mix",
    )
    executor: Executor = Field(
        default=Executor(),
        description="a cluster, for `--executor`; the output does not depend on it",
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of all random choices")
