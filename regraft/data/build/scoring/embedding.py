"""Embeddings of texts: vectors of length 1, whose product is the similarity of two texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from regraft.checkpoint.hf.pretrained import for_inference, load_model
from regraft.checkpoint.hf.tokenizer import load_tokenizer
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError
from regraft.input_files import read_json_object

Vectors = NDArray[np.float32]
_BATCH = 32  # texts
_TOKENS = 512  # of a text, read by a causal model


class Embedder(Protocol):
    """What makes embeddings."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors [texts, d] of length 1."""
        ...


class HiddenStates:
    """The mean of a causal model's last hidden states over the first 512 tokens of a text."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model.base_model, tokenizer
        self._device = next(model.parameters()).device
        config = model.config.get_text_config()
        self._most = min(_TOKENS, int(config.max_position_embeddings))

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Vectors:
        parts = []
        for number in range(0, len(texts), _BATCH):
            rows = self._tokenizer(list(texts[number : number + _BATCH]), verbose=False)
            ids = [row[: self._most] or [0] for row in rows["input_ids"]]
            lengths = torch.tensor([len(row) for row in ids], device=self._device)
            padded = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
            for at, row in enumerate(ids):
                padded[at, : len(row)] = torch.tensor(row)
            # attention is causal, so padding on the right changes nothing before it
            hidden = self._model(padded.to(self._device), use_cache=False).last_hidden_state.float()
            inside = torch.arange(hidden.shape[1], device=self._device) < lengths[:, None]
            parts.append(((hidden * inside[..., None]).sum(1) / lengths[:, None]).cpu().numpy())
        return normalise(np.concatenate(parts)) if parts else np.empty((0, 0), np.float32)


class StaticEmbeddings:
    """A model2vec model: the mean of the static vectors of a text's tokens."""

    def __init__(self, folder: str) -> None:
        try:
            from model2vec import StaticModel
        except ImportError:
            raise InputError(
                f"{folder} is a model2vec model, and model2vec is not installed; install it, or "
                "give a causal language model."
            ) from None
        self._model = StaticModel.from_pretrained(folder)

    def embed(self, texts: Sequence[str]) -> Vectors:
        return normalise(np.asarray(self._model.encode(list(texts)), dtype=np.float32))


def open_embedder(location: str, device: torch.device) -> Embedder:
    """The embeddings of a folder of model2vec, or of a causal language model (a folder or Hub id).

    Raises CheckpointError for neither, and InputError where model2vec is not installed."""
    if is_static(location):
        return StaticEmbeddings(location)
    with Checkpoint.open(location) as checkpoint:
        model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    return HiddenStates(for_inference(model, device), tokenizer)


def check_embedder(location: str) -> None:
    """Raise what `open_embedder` raises, without reading weights."""
    if is_static(location):
        StaticEmbeddings(location)
    else:
        Checkpoint.open(location).close()


def is_static(location: str) -> bool:
    """Whether a folder holds a model2vec model."""
    path = Path(location) / "config.json"
    if not path.is_file():
        return False
    config = read_json_object(path)
    # model2vec 0.10 writes no model_type; models on the Hub have one
    return "normalize" in config and config.get("model_type", "model2vec") == "model2vec"


def normalise(vectors: Vectors) -> Vectors:
    """Vectors of length 1; those of length 0 stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)
