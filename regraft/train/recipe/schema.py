"""The schema of a training recipe: every key, its type, its default and what it means.

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

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from regraft.recipe_values import Block, Count
from regraft.train.recipe.data import Data
from regraft.train.recipe.execution import Memory, Optimizer, Parallel
from regraft.train.recipe.model import Export, Load, Lora, ToyModel
from regraft.train.recipe.stages import Positions, Rope, Schedule, Stage
from regraft.train.recipe.validation import Recover, Watch


class Body(Block):
    """The keys of a recipe."""

    model: str | ToyModel = Field(description="a folder or org/name[@revision], or {toy: {..}}")
    method: Literal["full", "lora", "recover"] = Field(
        default="full",
        description="full: all weights; lora: an adapter; recover: all weights after a graft, or "
        "with a `lora` block a LoRA that the export folds in",
    )
    lora: Lora | None = None
    load: Load = Load()
    recover: Recover = Recover()
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto", description="of the arithmetic; auto: bfloat16 on CUDA, else float32"
    )
    freeze: list[str] = Field(
        default=[], description="full: tensors that are not trained, by a part of their name"
    )
    rope: Rope = Rope()
    stages: Annotated[list[Stage], Field(min_length=1)] = Field(
        description="parts of the training, one after another"
    )
    positions: Positions = Positions()
    data: Data
    parallel: Parallel = Parallel()
    memory: Memory = Memory()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    watch: Watch | None = None
    track: Literal["wandb"] | None = Field(
        default=None, description="also log to Weights & Biases (TensorBoard needs no key)"
    )
    save_every: Count = Field(default=100, description="steps between checkpoints")
    export: Export = Export()
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="of rows, positions and new weights: the same seed, the same bytes"
    )
    deterministic: bool = Field(
        default=False,
        description="on a GPU: the same bits from every run, by FlashAttention-2 and torch's "
        "deterministic algorithms, which are slower; a CPU gives the same bits anyway",
    )

    @model_validator(mode="before")
    @classmethod
    def _lora_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("method") == "lora":
            return {**values, "lora": values.get("lora") or {}}
        return values


def trains_everything(body: Body) -> bool:
    """Whether all parameters are trained, except those that `freeze` names; else only a LoRA is."""
    return body.lora is None


def exports_adapter(body: Body) -> bool:
    """Whether the run writes an adapter, and not a model."""
    kind = body.export.kind
    return kind == "adapter" or (kind == "auto" and body.method == "lora")


def has_teacher(body: Body) -> bool:
    """Whether a recovery has a teacher, a second model that is loaded beside the trained one."""
    return body.method == "recover" and body.recover.teacher is not None
