"""A model as GGUF: float16 matrices, float32 vectors, its tokenizer, RoPE and context length."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from regraft.adapters.apply.match import names_in_transformers
from regraft.checkpoint.dtypes import FLOAT_DTYPES
from regraft.checkpoint.finite import is_finite
from regraft.checkpoint.hf.roles import checkpoint_roles
from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.shard_plan import PlannedTensor
from regraft.errors import CheckpointError
from regraft.export.content import Content, OutputTensor, block_rows
from regraft.export.gguf_file import file_type
from regraft.export.llama import LlamaShape, Names, permuted, shape_of
from regraft.export.rope import describe_rope, rope_tensors
from regraft.export.vocabulary import read_vocabulary
from regraft.markdown import last_name


def model_content(model: Checkpoint, dtype: torch.dtype, *, tokenizer: bool) -> Content:
    """The contents of a model's GGUF file.

    Raises InputError for a model, RoPE or tokenizer that llama.cpp does not have, CheckpointError
    where a tensor is missing, unknown or quantised.
    """
    shape, context = shape_of(model), checkpoint_context(model)
    factors = rope_tensors(context, shape.head_dim, model.name)
    vocabulary = read_vocabulary(model, shape.vocabulary) if tokenizer else None
    tensors = [
        OutputTensor(
            PlannedTensor(name, tuple(values.shape), torch.float32), name, partial(_whole, values)
        )
        for name, values in factors.items()
    ]
    tensors += _weights(model, shape, dtype)

    def describe(writer: Any) -> None:
        writer.add_type("model")
        writer.add_name(last_name(model.name))
        writer.add_file_type(file_type(dtype))
        _describe_shape(writer, shape)
        describe_rope(writer, context, shape.head_dim)
        if vocabulary is None:
            writer.add_tokenizer_model("no_vocab")
        else:
            vocabulary.describe(writer)

    return Content(tensors, describe)


def _describe_shape(writer: Any, shape: LlamaShape) -> None:
    writer.add_vocab_size(shape.vocabulary)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def _weights(model: Checkpoint, shape: LlamaShape, dtype: torch.dtype) -> list[OutputTensor]:
    stored = names_in_transformers(checkpoint_roles(model))
    gguf_names = Names(shape.layers)
    tensors = []
    for name, tensor in stored.items():
        if name.endswith("rotary_emb.inv_freq.weight"):
            continue  # old checkpoints store what the config says
        if name == "lm_head.weight" and model.tied:
            continue
        target = gguf_names.of(name)
        info = model.tensors[tensor]
        if target is None or info.dtype not in FLOAT_DTYPES:
            what = f"is stored as {info.dtype}" if target else "has no place in llama.cpp"
            raise CheckpointError(
                f"Tensor '{tensor}' of {model.name} {what}; give a Llama that is not quantised."
            )
        planned = PlannedTensor(target, info.shape, dtype if len(info.shape) > 1 else torch.float32)
        heads = shape.head_count(name.rpartition(".")[0])
        tensors.append(OutputTensor(planned, tensor, partial(_rows, model, tensor, heads)))
    missing = _expected(shape.layers, model.tied) - stored.keys()
    if missing:
        raise CheckpointError(
            f"{model.name} lacks the tensor '{min(missing)}'; download the model again."
        )
    return tensors


def _expected(layers: int, tied: bool) -> set[str]:
    """The weights that every Llama of this depth has."""
    names = {"model.embed_tokens.weight", "model.norm.weight"}
    names |= set() if tied else {"lm_head.weight"}
    parts = [f"self_attn.{p}_proj" for p in "qkvo"] + [
        f"mlp.{p}_proj" for p in ("gate", "up", "down")
    ]
    parts += ["input_layernorm", "post_attention_layernorm"]
    return names | {f"model.layers.{i}.{part}.weight" for i in range(layers) for part in parts}


def _rows(model: Checkpoint, tensor: str, heads: int | None) -> Iterator[torch.Tensor]:
    """The rows of a stored tensor in float32, in llama.cpp's order."""
    shape = model.tensors[tensor].shape
    step = shape[0] if heads is not None else block_rows(shape[-1] if len(shape) > 1 else 1)
    for start in range(0, shape[0], step):
        block = model.rows(tensor, start, min(start + step, shape[0])).float()
        if not is_finite(block):
            raise CheckpointError(
                f"Tensor '{tensor}' of {model.name} holds NaN or infinite numbers; give a sound "
                "checkpoint."
            )
        yield permuted(block, heads) if heads is not None else block


def _whole(values: torch.Tensor) -> Iterator[torch.Tensor]:
    yield values
