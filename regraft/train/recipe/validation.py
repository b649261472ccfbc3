"""Blocks of a recipe on validation during training, and on recovery."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from regraft.recipe_values import Block, Count, Number, Positive, Share, Tokens


class Needle(Block):
    """Texts of the retrieval probe, in which {key} and {value} are replaced."""

    fact: str = Field(
        default=" The secret number of {key} is {value}. ", description="put into the text"
    )
    question: str = Field(
        default=" What is the secret number of {key}? The secret number of {key} is",
        description="asked at the end of the text",
    )
    answer: str = Field(default=" {value}.", description="whose tokens are scored")
    keys: Annotated[list[str], Field(min_length=1)] = Field(
        default=["Paris", "Oslo", "Cairo", "Lima", "Quito", "Delhi", "Tokyo", "Rome"],
        description="one is drawn for every row",
    )
    values: list[str] | None = Field(default=None, description="default: numbers of five digits")
    filler: str | None = Field(
        default=None, description="source of the surrounding text; default: all held-out text"
    )
    rows: Count = Field(default=8, description="rows with a needle")


class Watch(Block):
    """Validation during training."""

    every: Count = Field(default=50, description="steps")
    rows: Count = Field(
        default=8,
        description="held-out rows for NLL by position, and of each source for its loss before and "
        "after the training",
    )
    length: Tokens | None = Field(
        default=None,
        description="of the rows in tokens; default: the stage's length, in a recovery that of the "
        "longest stage",
    )
    sources: list[str] = Field(
        default=[], description="of the held-out text; default: those that are trained on"
    )
    needle: Needle | None = None
    stop: bool = Field(default=False, description="end a stage whose NLL at far positions rises")
    tolerance: Positive = Field(default=0.1, description="nats of NLL")


class Veto(Block):
    """What a recovery with `watch` must not lose, against the graft before its first step. The
    weights that are exported have the least drift of those within these bounds; after three
    validations in succession outside of them the recovery ends."""

    far: Positive = Field(
        default=0.05, description="nats by which NLL at the farthest positions may be higher"
    )
    needles: Share = Field(
        default=0.1, description="by how much the share of needles found may be lower"
    )


class Recover(Block):
    """A short fine-tune after a graft or a merge, until short text has the NLL it had before."""

    teacher: str | None = Field(
        default=None, description="the ungrafted derivative, whose NLL of short text is the goal"
    )
    short: list[str] = Field(
        default=[], description="sources of short text; default: those whose rows are packed"
    )
    drift: Positive | None = Field(
        default=0.01,
        description="stop where the NLL of short text is at most this much above the teacher's",
    )
    veto: Veto | None = Veto()
    every: Count = Field(default=10, description="steps between measurements of the drift")
    rows: Count = Field(default=16, description="held-out documents that the drift is measured on")
    distill: Annotated[Number, Field(ge=0)] = Field(
        default=1.0,
        description="weight of KL(teacher || model), added to the loss of rows of short text where "
        "there is a teacher",
    )
    noise: Share = Field(
        default=0.0,
        description="noise added to every matrix first, relative to its standard deviation",
    )
