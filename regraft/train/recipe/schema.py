"""The blocks of a training recipe: every key, its type, its default and what it means.

    model: meta-llama/Meta-Llama-3-8B
    method: lora
    rope: {law: scaling}
    stages:
      - {length: 64k, steps: 30, batch: 32, rate: 2e-5}
      - {length: 256k, theta: 207e6, steps: 24, batch: 16, rate: 2e-5}
    data:
      sources:
        - {name: books, jsonl: books.jsonl, rows: whole}

Every switch is independent of the others, because published recipes differ.
"""

from __future__ import annotations

import typing
from typing import Annotated, Literal

from pydantic import Field, model_validator

from regraft.train.recipe.values import Block, Count, Degree, Number, Positive, Share, Theta, Tokens


class Toy(Block):
    """A small Llama made on the spot, with random weights and a vocabulary of 194 words."""

    length: Tokens = Field(default=64, description="its own context, in tokens")
    theta: Theta = Field(default=70.0, description="its own RoPE base")
    hidden: Count = 128
    intermediate: Count = 192
    layers: Count = 2
    heads: Count = 4
    kv_heads: Count = 2


class ToyModel(Block):
    toy: Toy


class Lora(Block):
    rank: Count = Field(default=64, le=65536)
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


class Rope(Block):
    """How the frequencies of a stage follow from its length."""

    family: Literal["keep", "default", "linear", "dynamic", "yarn", "llama3"] = Field(
        default="keep", description="RoPE family; keep: the model's own"
    )
    law: Literal["scaling", "ntk", "bound", "keep"] | None = Field(
        default=None,
        description="theta of a stage that is longer than the model's context and states none; "
        "default: scaling, or keep with a family that has a factor",
    )
    factor: Positive | None = Field(
        default=None, description="of the families that scale; default: length / original"
    )
    original: Tokens | None = Field(
        default=None, description="length before extension; default: the model's"
    )


class Schedule(Block):
    """The learning rate within a stage."""

    kind: Literal["constant", "cosine", "linear"] = "cosine"
    stable: Share = Field(
        default=0.0, description="share of the steps after warm-up before the rate falls"
    )
    warmup: Annotated[int, Field(ge=0)] = Field(default=0, description="steps")
    floor: Share = Field(default=0.1, description="last rate over peak rate")


class Stage(Block):
    """One length at one theta."""

    length: Tokens = Field(description="target context in tokens")
    theta: Theta | None = None
    fallback: list[Theta] = Field(
        default=[],
        description="thetas to start the stage again with, one after another, where watch stops it",
    )
    steps: Count | None = None
    tokens: Tokens | None = Field(default=None, description="instead of steps; rounded up")
    batch: Count = Field(default=1, description="rows per optimizer step, over all devices")
    rate: Positive = Field(default=2e-5, description="peak learning rate")
    schedule: Schedule | None = Field(default=None, description="default: the recipe's")
    mix: dict[str, Positive] | None = Field(
        default=None, description="share of rows by source; default: all sources alike"
    )

    @model_validator(mode="after")
    def _one_measure(self) -> Stage:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give either steps or tokens")
        return self


class Positions(Block):
    """Positions of a row's tokens: see `regraft.data.positions`."""

    kind: Literal["contiguous", "pose", "multi_chunk"] = "contiguous"
    window: Tokens | None = Field(
        default=None, description="tokens really trained in a row, with pose and multi_chunk"
    )
    chunks: Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(
        default=[2, 64], description="multi_chunk: fewest and most chunks (log-uniform)"
    )
    least: Count = Field(default=64, description="multi_chunk: shortest chunk in tokens")
    unskipped: Share = Field(default=0.2, description="share of rows without any skip")
    offset: bool = Field(default=False, description="contiguous rows start anywhere that fits")
    content: Literal["near", "far"] = Field(
        default="far",
        description="far: skip text along with positions where a document is long enough",
    )


class Source(Block):
    """One body of text."""

    name: str
    text: str | None = Field(default=None, description="a file, folder or glob; a file a document")
    jsonl: str | None = Field(default=None, description="a file, folder or glob; a line a document")
    parquet: str | None = Field(default=None, description="needs pyarrow")
    hub: str | None = Field(default=None, description="a Hub dataset, needs datasets")
    synthetic: Literal["notes"] | None = Field(
        default=None, description="generated: prose with facts and questions about them"
    )
    field: str = Field(default="text", description="of a jsonl line, or the column")
    split: str = Field(default="train", description="of a Hub dataset")
    separator: str | None = Field(default=None, description="text: what parts documents in a file")
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
        "best-fit, separated by masks; joined: documents one after another, cut at the length",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        given = [key for key in KINDS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(KINDS)}")
        return self

    @property
    def kind(self) -> Kind:
        return next(key for key in KINDS if getattr(self, key) is not None)

    @property
    def place(self) -> str:
        return str(getattr(self, self.kind))


Kind = Literal["text", "jsonl", "parquet", "hub", "synthetic"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)


class Data(Block):
    sources: Annotated[list[Source], Field(min_length=1)]
    masks: bool = Field(default=True, description="documents in one row do not see each other")
    held_out: Share = Field(
        default=0.02,
        description="share of documents that are not trained on, for `watch` and `recover`",
    )
    cache: str | None = Field(default=None, description="folder of tokenised text")


class Parallel(Block):
    """Degrees of the mesh; their product is the number of processes. What is auto is 1, but for
    the first auto of context and shard, which takes what the others leave."""

    context: Degree = Field(default="auto", description="share a sequence by keys and values")
    ulysses: Degree = Field(default="auto", description="share it further, by heads")
    shard: Degree = Field(default="auto", description="FSDP")
    replicate: Degree = Field(default="auto", description="copies with different rows")
    algorithm: Literal["auto", "gather", "ring"] = "auto"
    peak: Positive | None = Field(
        default=None, description="FLOP/s of a device, for MFU; default: the chip's published rate"
    )


class Memory(Block):
    checkpoint: bool = Field(default=True, description="recompute layers in the backward pass")
    offload: bool = Field(default=False, description="keep layer inputs in host memory")
    keep_attention: bool | Literal["auto"] = Field(
        default="auto",
        description="keep the result of every layer's attention, which is then not recomputed; as "
        "many bytes as layer inputs, and offloaded with them. auto: on GPUs, in stages where a "
        "tenth of the memory is left by the estimate",
    )
    tiled_mlp: Annotated[int, Field(ge=0)] = Field(
        default=0, description="tokens per tile of the MLP; 0: all at once"
    )
    loss_chunk: Count = Field(default=2048, description="tokens whose logits exist at a time")
    rows: Count = Field(default=1, description="rows in one forward pass")


class Optimizer(Block):
    name: Literal["adamw", "adamw8bit", "muon"] = Field(
        default="adamw", description="adamw8bit: in one process with a GPU"
    )
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = Field(default=[0.9, 0.95])
    eps: Positive = 1e-8
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    clip: Positive | None = Field(default=1.0, description="most gradient norm; null: no limit")
    matrix_rate: Positive | None = Field(
        default=None, description="muon: rate of matrices over the stage's rate; default 2.4"
    )


class Needle(Block):
    """Texts of the retrieval probe; {key} and {value} are filled in."""

    fact: str = " The secret number of {key} is {value}. "
    question: str = " What is the secret number of {key}? The secret number of {key} is"
    answer: str = " {value}."
    keys: Annotated[list[str], Field(min_length=1)] = Field(
        default=["Paris", "Oslo", "Cairo", "Lima", "Quito", "Delhi", "Tokyo", "Rome"]
    )
    values: list[str] | None = Field(default=None, description="default: numbers of five digits")
    filler: str | None = Field(
        default=None, description="source of the text around; default: what is held out of all"
    )
    rows: Count = 8


class Watch(Block):
    every: Count = Field(default=50, description="steps")
    rows: Count = Field(default=8, description="held-out rows for NLL by position")
    length: Tokens | None = Field(default=None, description="default: the stage's length")
    needle: Needle | None = None
    stop: bool = Field(default=False, description="end a stage whose far positions get worse")
    tolerance: Positive = Field(default=0.1, description="nats of NLL")


class Recover(Block):
    """The short fine-tune after a graft or a merge."""

    teacher: str | None = Field(
        default=None, description="the ungrafted derivative: what short text should read like"
    )
    short: list[str] = Field(
        default=[], description="sources of short text; default: those whose rows are packed"
    )
    drift: Positive | None = Field(
        default=0.01, description="stop at this much more NLL than the teacher's on short text"
    )
    every: Count = Field(default=10, description="steps between measurements of the drift")
    rows: Count = Field(default=16, description="held-out documents that it is measured on")
    distill: Annotated[Number, Field(ge=0)] = Field(
        default=0.0, description="weight of KL(teacher || model) on rows of short text"
    )
    noise: Share = Field(
        default=0.0, description="noise on every matrix first, as a share of its deviation"
    )


class Export(Block):
    kind: Literal["auto", "model", "adapter"] = Field(
        default="auto", description="auto: a model after full, an adapter after lora"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: the model's own"
    )


class Body(Block):
    """The keys of a recipe."""

    model: str | ToyModel = Field(description="a folder or org/name[@revision], or {toy: {..}}")
    method: Literal["full", "lora", "recover"] = "full"
    lora: Lora = Lora()
    recover: Recover = Recover()
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto", description="of the arithmetic; auto: bfloat16 on CUDA, else float32"
    )
    freeze: list[str] = Field(
        default=[], description="full: tensors that stay, by part of their name"
    )
    rope: Rope = Rope()
    stages: Annotated[list[Stage], Field(min_length=1)]
    positions: Positions = Positions()
    data: Data
    parallel: Parallel = Parallel()
    memory: Memory = Memory()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    watch: Watch | None = None
    track: Literal["wandb"] | None = Field(
        default=None, description="also tell Weights & Biases (TensorBoard needs no key)"
    )
    save_every: Count = Field(default=100, description="steps between checkpoints")
    export: Export = Export()
    seed: Annotated[int, Field(ge=0)] = 0
    deterministic: bool = Field(
        default=False,
        description="on a GPU: the same bits from every run, by FlashAttention-2 and torch's "
        "deterministic algorithms, which are slower; a CPU gives the same bits anyway",
    )


def trains_everything(body: Body) -> bool:
    """Whether every parameter learns but those that `freeze` names; else only a LoRA does."""
    return body.method != "lora"


def has_teacher(body: Body) -> bool:
    """Whether a second model is held, which recovery is compared with or learns from."""
    return body.method == "recover" and body.recover.teacher is not None
