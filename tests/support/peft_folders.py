"""Adapter folders as PEFT writes them, with any key or tensor changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Q = "model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def adapter(
    folder: Path, config: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None
) -> Path:
    """An adapter of one module, as PEFT would write it, with anything changed."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    own = {
        f"base_model.model.{Q}.lora_A.weight": torch.randn(4, 64, generator=generator),
        f"base_model.model.{Q}.lora_B.weight": torch.randn(64, 4, generator=generator),
    }
    for name, tensor in (tensors or {}).items():
        own.pop(name, None) if tensor is None else own.update({name: tensor})
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    save_file(own, folder / "adapter_model.safetensors")
    return folder
