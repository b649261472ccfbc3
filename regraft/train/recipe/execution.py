"""Blocks of a recipe on running a step: the mesh of processes, memory, the optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from regraft.recipe_values import Block, Count, Degree, Number, Positive, Share


class Parallel(Block):
    """Degrees of the mesh; their product is the number of processes. Of context and shard the first
    that is auto is what remains of that number; every other auto is 1."""

    context: Degree = Field(default="auto", description="share a sequence by keys and values")
    ulysses: Degree = Field(default="auto", description="share it further, by heads")
    shard: Degree = Field(default="auto", description="FSDP")
    replicate: Degree = Field(default="auto", description="copies with different rows")
    algorithm: Literal["auto", "gather", "ring"] = Field(
        default="auto",
        description="how `context` exchanges keys and values; auto: the faster by an estimate",
    )
    peak: Positive | None = Field(
        default=None, description="FLOP/s of a device, for MFU; default: the chip's published rate"
    )


class Memory(Block):
    """Ways to need less memory."""

    checkpoint: bool = Field(default=True, description="recompute layers in the backward pass")
    offload: bool = Field(default=False, description="keep layer inputs in host memory")
    keep_attention: bool | Literal["auto"] = Field(
        default="auto",
        description="keep the result of every layer's attention, which is then not recomputed; as "
        "many bytes as layer inputs, and offloaded with them. auto: on GPUs, in stages where a "
        "tenth of the memory is left by the estimate",
    )
    tiled_mlp: Annotated[int, Field(ge=0)] = Field(
        default=0, description="tokens per tile of the MLP; 0: one tile"
    )
    fused_norms: bool = Field(
        default=False,
        description="RMSNorm of bfloat16 layers without float32 copies; on a GPU by torch's fused "
        "kernels, which round once where transformers rounds twice",
    )
    fused_rope: bool = Field(
        default=False,
        description="RoPE of bfloat16 layers by a Triton kernel on a GPU: one pass over queries "
        "and keys, in float32 and rounded once, with the same bits every time",
    )
    fused_swiglu: bool = Field(
        default=False,
        description="the MLP's SwiGLU of bfloat16 layers likewise; its gradients overwrite its "
        "inputs",
    )
    loss_chunk: Count = Field(default=2048, description="tokens whose logits exist at a time")
    rows: Count = Field(default=1, description="rows of a process in one forward pass")


class Optimizer(Block):
    """The optimizer and its hyperparameters."""

    name: Literal["adamw", "adamw8bit", "muon"] = Field(
        default="adamw", description="adamw8bit: in one process with a GPU"
    )
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.95], description="Adam's decay of the first and of the second moment"
    )
    eps: Positive = Field(default=1e-8, description="added to the root of the second moment")
    weight_decay: Annotated[Number, Field(ge=0)] = Field(
        default=0.0, description="decoupled weight decay"
    )
    clip: Positive | None = Field(default=1.0, description="largest gradient norm; null: no limit")
    matrix_rate: Positive | None = Field(
        default=None, description="muon: rate of matrices relative to the stage's; default 2.4"
    )
