"""NLL of tokens by a causal language model, read in chunks with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from regraft.checkpoint.hf.pretrained import for_inference, load_model
from regraft.checkpoint.hf.tokenizer import load_tokenizer
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError

_LOGITS = 1 << 26
"""Logits that exist at a time: 256 MiB in float32."""
_CHUNK = 2048
"""Tokens that are read at a time where no logits are needed."""


class Scorer(Protocol):
    """What scores tokens. start: the beginning-of-text token, None if there is none. context: the
    most tokens of a text."""

    start: int | None
    context: int

    def last(self, texts: Sequence[Sequence[int]], count: int) -> Tensor:
        """Float32 NLL in nats [texts, count] of the last `count` tokens of texts of one length,
        each of more than `count` tokens."""
        ...


class CausalScorer:
    """Any causal language model of transformers. tokenizer: its own."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self.tokenizer = name, tokenizer
        self._model = model
        config = model.config.get_text_config()
        self.start: int | None = config.bos_token_id
        self.context = int(config.max_position_embeddings)
        self._vocabulary = int(config.vocab_size)
        self._rows = model.get_input_embeddings().num_embeddings
        self._device = next(model.parameters()).device

    @classmethod
    def open(cls, location: str, device: torch.device) -> CausalScorer:
        """The model of a folder or Hub id, in the dtype of its config (float32 on a CPU for
        float16). Raises CheckpointError where it cannot be loaded."""
        with Checkpoint.open(location) as checkpoint:
            model = load_model(checkpoint)
            tokenizer = load_tokenizer(checkpoint)
        return cls(location, for_inference(model, device), tokenizer)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, with the tokenizer's special tokens."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def span(self, text: str, start: int, end: int) -> tuple[list[int], tuple[int, int]]:
        """Token ids of a text, and which of them [first, last) share a character with [start, end).

        Needs a fast tokenizer."""
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids = list(encoded["input_ids"])
        inside = [
            at
            for at, (low, high) in enumerate(encoded["offset_mapping"])
            if low < end and high > start and high > low
        ]
        return ids, ((inside[0], inside[-1] + 1) if inside else (0, 0))

    @torch.no_grad()
    def last(self, texts: Sequence[Sequence[int]], count: int) -> Tensor:
        """`Scorer.last`, in one forward pass over the texts: the beginning in chunks of 2,048
        tokens, the scored end in chunks whose logits take at most 256 MiB.

        Raises InputError for a token without a row in the embedding, and for NaN.
        """
        highest = max(map(max, texts))
        if highest >= self._rows:
            raise InputError(
                f"{self.name} has {self._rows:,} rows in its embedding, and its tokenizer gives "
                f"token {highest}; give the model its own tokenizer."
            )
        ids = torch.tensor([list(text) for text in texts], device=self._device)
        first = ids.shape[1] - count  # the first scored token, predicted by the one before
        size = max(1, _LOGITS // (len(texts) * self._vocabulary))
        cache, parts = None, []
        cuts = [*range(0, first - 1, _CHUNK), *range(first - 1, ids.shape[1] - 1, size)]
        for low, high in zip(cuts, [*cuts[1:], ids.shape[1] - 1], strict=True):
            scored = low >= first - 1
            out = self._model(
                input_ids=ids[:, low:high], past_key_values=cache, use_cache=True,
                logits_to_keep=0 if scored else 1,
            )  # fmt: skip
            cache = out.past_key_values
            if scored:
                nll = torch.nn.functional.cross_entropy(
                    out.logits.float().flatten(0, 1), ids[:, low + 1 : high + 1].flatten(),
                    reduction="none",
                )  # fmt: skip
                parts.append(nll.view(len(texts), -1).cpu())
        result = torch.cat(parts, 1)
        if not result.isfinite().all():
            raise InputError(
                f"{self.name} computes NaN or infinity on a document: its numbers overflow at this "
                "length, or its weights are broken. Lower `context`, or give another model."
            )
        return result
