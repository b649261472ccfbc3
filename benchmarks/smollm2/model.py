"""Checkpoint folders of the experiments: the base in bfloat16, weights under another RoPE."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch


def unpack(source: Path, target: Path) -> None:
    """Copy a checkpoint folder, or write the dequantised model of a GGUF file."""
    part = target.with_suffix(".part")
    if source.is_dir():
        shutil.copytree(source, part, dirs_exist_ok=True)
    else:
        from llamacpp.logits import unpack as unpack_gguf
        from safetensors.torch import load_file, save_file

        part.mkdir(parents=True, exist_ok=True)
        unpack_gguf(source, part)
        state = load_file(part / "model.safetensors")
        state = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
        save_file(state, part / "model.safetensors", {"format": "pt"})
        config = json.loads((part / "config.json").read_text())
        (part / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}, indent=1))
    part.rename(target)


def with_rope_of(weights: Path, other: Path, target: Path) -> None:
    """A copy of the checkpoint `weights` under the RoPE of `other`, and no other change."""
    part = target.with_suffix(".part")
    shutil.copytree(weights, part, dirs_exist_ok=True)
    long = json.loads((other / "config.json").read_text())
    config = json.loads((part / "config.json").read_text())
    for key in ("rope_parameters", "rope_theta", "rope_scaling", "max_position_embeddings"):
        if key in long:
            config[key] = long[key]
    (part / "config.json").write_text(json.dumps(config, indent=1))
    part.rename(target)
