"""llama.cpp's architecture `llama`: the models it runs, its names, its order of q and k rows.

transformers rotates the first half of a head with the second, llama.cpp neighbouring rows: row i of
the first half and row i of the second become rows 2i and 2i + 1. Attention does not change,
since q and k are permuted alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from regraft.checkpoint.config import load_config
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError
from regraft.export.gguf_file import require_gguf

ARCHITECTURE = "llama"
_CLASSES = ("LlamaForCausalLM", "MistralForCausalLM")
_ROTATED = ("q_proj", "k_proj")


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a model that llama.cpp runs as `llama`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    norm_eps: float

    def head_count(self, module: str) -> int | None:
        """Heads within which the rows of a module are permuted; None where they are not."""
        leaf = module.rpartition(".")[2]
        if leaf not in _ROTATED:
            return None
        return self.heads if leaf == "q_proj" else self.kv_heads


def shape_of(model: Checkpoint) -> LlamaShape:
    """The sizes of a model. Raises InputError where llama.cpp's `llama` would compute another
    model, CheckpointError for a config that transformers refuses."""
    names = model.config.get("architectures") or []
    if not names or names[0] not in _CLASSES:
        kind = names[0] if names else model.config.get("model_type") or "unknown"
        raise InputError(
            f"{model.name} is a {kind} model and regraft writes GGUF for {' and '.join(_CLASSES)}; "
            "convert it with llama.cpp's own convert_hf_to_gguf.py."
        )
    config = load_config(model.config, model.name)
    if config.hidden_act != "silu":
        _refuse(model, f"the activation {config.hidden_act}", "silu")
    if getattr(config, "sliding_window", None):
        _refuse(model, f"a sliding window of {config.sliding_window} tokens", "full attention")
    heads = config.num_attention_heads
    return LlamaShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        norm_eps=config.rms_norm_eps,
    )


def _refuse(model: Checkpoint, have: str, need: str) -> None:
    raise InputError(
        f"{model.name} has {have}, which llama.cpp's architecture llama does not compute (it has "
        f"{need}); serve it with transformers or vLLM."
    )


class Names:
    """transformers' names of a model's tensors -> GGUF's."""

    def __init__(self, layers: int) -> None:
        gguf = require_gguf()
        self._map: Any = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)

    def of(self, name: str) -> str | None:
        """'blk.0.attn_q.weight' of 'model.layers.0.self_attn.q_proj.weight'; None if unknown."""
        result = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        return None if result is None else str(result)


def permuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [heads * d, ...] of a q or k projection in llama.cpp's order."""
    half = rows.shape[0] // heads // 2
    return rows.view(heads, 2, half, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
