"""Blocks of a recipe on its stages: RoPE, learning rate, positions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from regraft.recipe_values import Block, Count, Positive, Share, Theta, Tokens

Factors = Annotated[list[Positive], Field(min_length=1)]


class Rope(Block):
    """How the RoPE of a stage follows from its length."""

    family: Literal["keep", "default", "linear", "dynamic", "yarn", "llama3", "longrope"] = Field(
        default="keep", description="RoPE family; keep: the model's own"
    )
    law: Literal["scaling", "ntk", "bound", "keep"] | None = Field(
        default=None,
        description="theta of a stage that is longer than the model's context and states none; "
        "default: scaling, or keep with a family that has a factor",
    )
    factor: Positive | None = Field(
        default=None,
        description="of the families that have a factor; default: length / original",
    )
    original: Tokens | None = Field(
        default=None, description="length before extension; default: the model's"
    )
    long_factor: Factors | None = Field(
        default=None,
        description="longrope: what each frequency is divided by in stages longer than `original`; "
        "default: by formula, see `regraft theta --probe` for better ones",
    )
    short_factor: Factors | None = Field(
        default=None, description="longrope: the same within `original`; default: ones"
    )


class Schedule(Block):
    """The learning rate within a stage."""

    kind: Literal["constant", "cosine", "linear"] = Field(
        default="cosine", description="how the rate falls after warm-up"
    )
    stable: Share = Field(
        default=0.0,
        description="share of the steps after warm-up during which the rate is constant",
    )
    warmup: Annotated[int, Field(ge=0)] = Field(default=0, description="steps")
    floor: Share = Field(default=0.1, description="last rate as a share of the peak rate")


class Stage(Block):
    """A part of the training, at one length and one theta."""

    length: Tokens = Field(description="target context in tokens")
    theta: Theta | None = Field(default=None, description="RoPE base; default: by `rope`")
    fallback: list[Theta] = Field(
        default=[],
        description="thetas to repeat the stage with, one after another, where watch stops it",
    )
    steps: Count | None = Field(default=None, description="optimizer steps")
    tokens: Tokens | None = Field(default=None, description="instead of steps; rounded up")
    batch: Count = Field(
        default=1, le=2**20, description="rows per optimizer step, over all devices"
    )
    rate: Positive = Field(default=2e-5, description="peak learning rate")
    schedule: Schedule | None = Field(default=None, description="default: the recipe's")
    mix: dict[str, Positive] | str | None = Field(
        default=None,
        description="share of rows by source, or the name of one of `data.mixes`; default: the "
        "same for all sources",
    )

    @model_validator(mode="after")
    def _one_measure(self) -> Stage:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give either steps or tokens")
        return self


class Positions(Block):
    """Positions of a row's tokens: see `regraft.data.positions`."""

    kind: Literal["contiguous", "pose", "multi_chunk"] = Field(
        default="contiguous",
        description="contiguous: none is skipped; pose: two chunks with a skip between them; "
        "multi_chunk: many chunks with sorted skips",
    )
    window: Tokens | None = Field(
        default=None, description="tokens of a row, with pose and multi_chunk"
    )
    chunks: Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(
        default=[2, 64], description="multi_chunk: fewest and most chunks (log-uniform)"
    )
    least: Count = Field(default=64, description="multi_chunk: shortest chunk in tokens")
    unskipped: Share = Field(default=0.2, description="share of rows without any skip")
    offset: bool = Field(
        default=False, description="contiguous rows start at a random position, not at 0"
    )
    content: Literal["near", "far"] = Field(
        default="far",
        description="far: skip text together with positions, as far as a document is long enough; "
        "near: take consecutive text",
    )
