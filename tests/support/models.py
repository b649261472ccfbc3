"""Small models made on the spot: a base, an extended model with a known delta, a derivative."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
LONG = {"rope_theta": 160000.0, "max_position_embeddings": 2048}
DEEP = {
    **LLAMA,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 12,
    "num_key_value_heads": 4,
}
TIED = {**LLAMA, "tie_word_embeddings": True}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
GEMMA2 = {
    **TIED,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 64,
}


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of the right names and shapes, from the real model class."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        state.pop("lm_head.weight", None)
    return state


def changed(
    state: dict[str, torch.Tensor],
    *,
    rank: int | None,
    size: float,
    seed: int,
    names: str = "proj",
) -> dict[str, torch.Tensor]:
    """The weights plus a delta of `rank` (None: full) and relative norm `size` where `names` is."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, w in state.items():
        if names not in name or w.ndim != 2:
            out[name] = w.clone()
            continue
        m, n = w.shape
        if rank is None:
            delta = torch.randn(m, n, generator=generator)
        else:
            delta = torch.randn(m, rank, generator=generator) @ torch.randn(
                rank, n, generator=generator
            )
        out[name] = w + delta * (size * w.norm() / delta.norm())
    return out


def save(
    folder: Path,
    config: dict[str, Any],
    state: dict[str, torch.Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
) -> Path:
    """A checkpoint folder as transformers would lay it out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    state = {k: v.to(dtype).contiguous() for k, v in state.items()}
    if shards == 1:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    names = list(state)
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: state[n] for n in names[i::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in state.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    return folder


def load(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder through safetensors' own loader."""
    state: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        state |= load_file(path)
    return state


def contents(folder: Path) -> dict[str, bytes]:
    """Relative file name -> bytes, of everything in a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def earlier_output(folder: Path, **files: str) -> Path:
    """A folder that regraft takes for an output of its own; file names have _ for the dot."""
    from regraft.checkpoint.write.manifest import write_manifest

    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    write_manifest(folder)
    return folder


def family(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    rank: int | None = 4,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
) -> tuple[Path, Path, Path]:
    """(base, extended, derivative): the delta has `rank` and is 3% of the weights' norm; the
    derivative differs from the base by 2%."""
    config = config or LLAMA
    base = weights(config)
    extended = changed(base, rank=rank, size=0.03, seed=1)
    derivative = changed(base, rank=None, size=0.02, seed=2)
    return (
        save(folder / "base", config, base, dtype=dtype, shards=shards),
        save(folder / "extended", {**config, **LONG}, extended, dtype=dtype, shards=shards),
        save(folder / "derivative", config, derivative, dtype=dtype, shards=shards),
    )
