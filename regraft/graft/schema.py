"""The blocks of a graft recipe: every key, its type, its default and what it means.

    base: meta-llama/Meta-Llama-3-8B
    extended: gradientai/Llama-3-8B-262k
    targets: [NousResearch/Hermes-2-Pro-Llama-3-8B]
    ranks: [16, 64, auto]
    evaluate: {suite: "needle,perplexity,drift", lengths: [8k, 64k]}

The blocks that another command runs (`extend`, `train`, `merge`, `recover`) have that command's own
schema, which `recipe.py` applies to them.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from regraft.document import RecipeValues, Where
from regraft.errors import InputError
from regraft.evaluate.suites import choose
from regraft.input_files import JsonObject
from regraft.recipe import Mistakes
from regraft.recipe_values import Block, Count, Number, Share, Tokens


class Trained(Block):
    """A model that the job trains itself."""

    train: RecipeValues = Field(
        description="a training recipe; its model is `base` unless it names one"
    )


class Target(Block):
    """A model to graft on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] | None = Field(
        default=None, description="of its folders and in the tables; default: the model's last part"
    )
    model: str | None = Field(default=None, description="a folder or org/name[@revision]")
    train: RecipeValues | None = Field(
        default=None, description="instead of model: a training recipe, of `base` by default"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Target:
        if (self.model is None) == (self.train is None):
            raise ValueError("give either model or train")
        if self.train is not None and self.name is None:
            raise ValueError("a target that is trained needs a name")
        return self


class Extract(Block):
    """`regraft extract-lora`; its ranks are the recipe's `ranks`."""

    energy: Share | None = Field(default=None, description="instead of ranks")
    budget: str | None = Field(default=None, description="instead of ranks: such as 300MB")
    layout: Literal["portable", "compact", "exact"] = "portable"
    modules: str = "all-linear"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    exact: bool = False
    calibrate: str | None = Field(
        default=None, description="a text: minimise the error on the inputs that occur on it"
    )
    calibrate_length: Tokens | None = Field(default=None, description="of a row; default: 8k")
    calibrate_tokens: Tokens | None = Field(default=None, description="of all rows; default: 64k")
    verify: bool = True
    full_fingerprint: bool = False
    force: bool = False


class Apply(Block):
    """`regraft apply`; its scales are the recipe's `scales`."""

    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    max_shard_size: str | None = None
    verify: bool = False
    force: bool = False
    guard: bool = Field(
        default=False,
        description="weights of a target that moved much from `base` get less of the change",
    )


class Evaluate(Block):
    """`regraft evaluate`."""

    suite: str | list[str] = "needle,perplexity,drift"
    lengths: Tokens | list[Tokens] | None = None
    items: Count = 50
    questions_per_text: Count = 1
    haystack: str = "grammar"
    qa: list[str] = Field(default=[])
    needles: Count = 1
    decoys: Annotated[int, Field(ge=0)] = 0
    depths: Count = 5
    sigmoid: bool = False
    scoring: Literal["auto", "teacher", "generate"] = "auto"
    twins: bool = True
    chat: bool = False
    texts: Count = 8
    limit: Count | None = None
    batch: Count | None = None
    judge: str | None = None
    judge_model: str | None = None

    @property
    def suites(self) -> list[str]:
        """The names of suites, tasks and measures."""
        names = self.suite.split(",") if isinstance(self.suite, str) else self.suite
        return [name.strip() for name in names if name.strip()]

    @property
    def token_lengths(self) -> list[int]:
        """The lengths in tokens; empty where they follow from the models' contexts."""
        return [self.lengths] if isinstance(self.lengths, int) else self.lengths or []

    def arguments(self) -> JsonObject:
        """The keyword arguments of `evaluate_models`."""
        values = self.model_dump(exclude={"suite", "lengths"})
        return {
            **values,
            "suite": ",".join(self.suites),
            "lengths": ",".join(map(str, self.token_lengths)) or None,
            "qa": tuple(self.qa),
        }


class Choose(Block):
    """Which rank and scale of a sweep the graft is made with."""

    retention_loss: Share = Field(
        default=0.05,
        description="among the points that lose at most this share of the target's own scores at "
        "its own lengths, the one with the most transfer",
    )


Rank = Annotated[int, Field(ge=1)] | Literal["auto"]


class Body(Block):
    """The keys of a recipe."""

    base: str | Trained | None = Field(
        default=None, description="the model that was extended; not needed beside `adapter`"
    )
    extended: str | None = Field(default=None, description="the model with the longer context")
    adapter: str | None = Field(
        default=None, description="instead of extended: an adapter with its longer context"
    )
    extend: RecipeValues | None = Field(
        default=None, description="instead of extended: a training recipe that extends `base`"
    )
    targets: str | Target | list[str | Target] = Field(description="models to graft on")
    method: Literal["apply", "merge"] = Field(
        default="apply", description="how a target gets the adapter; merge needs the block `merge`"
    )
    extract: Extract = Extract()
    apply: Apply = Apply()
    merge: RecipeValues | None = Field(
        default=None,
        description="a merge recipe in which target, adapter, base and extended stand for the "
        "models of this one; default of its models: target and adapter",
    )
    context: str | None = Field(
        default=None,
        description="RoPE and length of the grafts: adapter, checkpoint, or theta=..,length=..",
    )
    ranks: Annotated[list[Rank], Field(min_length=1)] | None = Field(
        default=None, description="of the adapter; several are a sweep; default: 64"
    )
    scales: Annotated[list[Number], Field(min_length=1)] = Field(
        default=[1.0], description="factors of the adapter's change; several are a sweep"
    )
    choose: Choose = Choose()
    recover: RecipeValues | str | None = Field(
        default=None, description="a training recipe or its file: the fine-tune after the graft"
    )
    evaluate: Evaluate | None = Field(
        default=None, description="how every graft is compared with its target and the donor"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of the stages that draw")


_KEYS = {*Body.model_fields, *Extract.model_fields, *Apply.model_fields, *Evaluate.model_fields}
_VALUES = {"rank": "rank", "scale": "scale", "force": "force: true"}


def in_recipe_words(message: str) -> str:
    """The message of a command, with the recipe's keys in place of the command's options."""

    def key(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        return _VALUES.get(name, name if name in _KEYS else match[0])

    return re.sub(r"--([a-z][a-z-]*)", key, message)


def check_evaluation(block: Evaluate, where: Where, mistakes: Mistakes) -> None:
    """Add the mistakes for which `regraft evaluate` would refuse the block at `where`."""
    try:
        choose(block.suites, len(block.qa))
    except InputError as error:
        mistakes.add((*where, "suite"), in_recipe_words(str(error)))
    if (block.judge is None) != (block.judge_model is None):
        mistakes.add(where, "a judge needs both judge and judge_model")
