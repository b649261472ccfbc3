"""The files of an adapter folder: PEFT's two, and regraft's for what PEFT has no field for.

adapter_config.json, adapter_model.safetensors   what PEFT, vLLM, SGLang and llama.cpp read
regraft.json                                     RoPE, context, lineage, error of every module
regraft-lineage.safetensors                      1024 sampled weights of each base tensor
regraft-differences.safetensors                  layout `exact`: norms, embeddings, head, biases
"""

from __future__ import annotations

import hashlib
from pathlib import Path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RECORD = "regraft.json"
LINEAGE = "regraft-lineage.safetensors"
DIFFERENCES = "regraft-differences.safetensors"

PREFIX = "base_model.model."  # of every key in adapter_model.safetensors


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def digests(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, for the files that decide the change."""
    result = {}
    for name in (CONFIG, WEIGHTS, DIFFERENCES):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                result[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return result
