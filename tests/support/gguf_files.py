"""GGUF files read by the gguf package, and models with a tokenizer that GGUF has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from evaluated import text_tokenizer
from models import LLAMA, save, weights


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(metadata, tensors in torch's shapes) of a file."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    return metadata, tensors


def speaking(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A random Llama with a byte-level BPE tokenizer of 600 tokens."""
    settings = {**LLAMA, "vocab_size": 604, "bos_token_id": 0, "eos_token_id": 1, **config}
    save(folder, settings, weights(settings, seed))
    text_tokenizer().save_pretrained(folder)
    return folder
