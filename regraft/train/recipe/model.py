"""Blocks of a recipe on the model: a toy model, LoRA, the export."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regraft.recipe_values import Block, Count, Positive, Theta, Tokens


class Toy(Block):
    """A small untrained Llama that the run creates itself, with a vocabulary of 194 words."""

    length: Tokens = Field(default=64, description="its context before training, in tokens")
    theta: Theta = Field(default=70.0, description="its RoPE base before training")
    hidden: Count = Field(default=128, description="size of the hidden states")
    intermediate: Count = Field(default=192, description="size inside the MLP")
    layers: Count = Field(default=2, description="number of layers")
    heads: Count = Field(default=4, description="attention heads; they divide hidden")
    kv_heads: Count = Field(default=2, description="heads of keys and values; they divide heads")


class ToyModel(Block):
    """`model: {toy: {..}}`."""

    toy: Toy


class Lora(Block):
    """The adapter that method lora trains."""

    rank: Count = Field(default=64, le=65536, description="of every module's factors")
    alpha: Positive | None = Field(default=None, description="default: twice the rank")
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank)")
    targets: str = Field(
        default="all-linear", description="all-linear, attention, mlp, or leaf names by commas"
    )
    norms: bool = Field(
        default=False,
        description="train the norms too; exported as dense differences, which `regraft apply` "
        "adds and PEFT, vLLM and llama.cpp leave out",
    )

    @property
    def effective_alpha(self) -> float:
        """alpha, or its default."""
        return self.alpha or 2 * self.rank


class Load(Block):
    """How the frozen weights are held."""

    bits: Literal[4] | None = Field(
        default=None,
        description="4: of linear layers under a LoRA, in NF4 by bitsandbytes, in one process; "
        "the export has the model's own weights",
    )


class Export(Block):
    """What the run writes."""

    kind: Literal["auto", "model", "adapter"] = Field(
        default="auto", description="auto: a model after full, an adapter after lora"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: the model's own"
    )
