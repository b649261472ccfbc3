"""How far the first layer of a model looks: LongAttn's dependency of a document.

"LongAttn: Selecting Long-context Training Data via Token-level Attention" (arXiv 2502.16860). With
the attention a of a head over L tokens, masked to keys at least k = L/4 tokens before their query:

    strength     DS = sum of the masked a / L
    variance     DV = variance over all L x L entries of the masked a (their uniformity is -DV)
    score        z(DS) - z(DV) / 2, both first averaged over heads; z by mean and deviation over the
                 documents that are compared

The authors' code scales both to 0..1 by the least and the greatest document instead of z, as the
paper has it. A document longer than the context is measured in pieces of equal length, whose means
by tokens are taken. The first layer sees embeddings and positions only: what it attends to far away
are equal and related words, not references. The paper selects by the first layer of Llama 3.1 8B
and 70B at 32k; of a smaller model its worth is not known.

Cost: embeddings, one layer without its MLP, and its attention weights, in blocks: H L^2 D
multiplications of queries and keys twice over, but none of values, of one layer. The other layers
are not loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regraft.checkpoint.config import load_config
from regraft.checkpoint.hf.pretrained import for_inference, load_model
from regraft.checkpoint.hf.tokenizer import load_tokenizer
from regraft.checkpoint.read.source import Checkpoint
from regraft.data.build.scoring.pieces import pieces
from regraft.errors import InputError

_BLOCK = 1 << 24
"""Attention weights that exist at a time: 64 MiB in float32."""
_NAME = "regraft_first_layer"


@dataclass(frozen=True)
class Distance:
    """strength, variance: DS and DV of a document, means over heads; 0 for fewer than 4 tokens."""

    strength: float
    variance: float


def check_first_layer(checkpoint: Checkpoint, length: int) -> None:
    """Raise InputError, from the config alone, for a model whose first layer does not attend to all
    of `length` tokens: it has a sliding window or chunks that are shorter, or no attention."""
    config = load_config(checkpoint.config, checkpoint.name).get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[0] if kinds else "sliding_attention" if window else "full_attention"
    reach = {
        "full_attention": None,
        "sliding_attention": window,
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    if kind not in reach:
        raise InputError(
            f"the first layer of {checkpoint.name} is of type {kind}, which has no attention "
            "weights; give another model, or another measure."
        )
    if (most := reach[kind]) is not None and most < length:
        raise InputError(
            f"the first layer of {checkpoint.name} attends to {most:,} tokens at most, and a text "
            f"has up to {length:,}; give `context: {most}` or less, a model with full attention, "
            "or another measure."
        )


class _Measured(Exception):
    """Ends the model's forward pass after the attention weights of its first layer."""

    def __init__(self, distance: Distance) -> None:
        self.distance = distance


class FirstLayer:
    """The first layer of any causal model of transformers. tokenizer: its own. start: its
    beginning-of-text token. context: the most tokens of a piece."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(_NAME, _measure)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)
        config = model.config.get_text_config()
        self.name, self.tokenizer, self._model = name, tokenizer, model
        self.start: int | None = config.bos_token_id
        self.context = int(config.max_position_embeddings)
        self._rows = model.get_input_embeddings().num_embeddings
        self._device = next(model.parameters()).device

    @classmethod
    def open(cls, location: str, device: torch.device) -> FirstLayer:
        """Of a folder or Hub id, in the dtype of its config (float32 on a CPU for float16). Raises
        CheckpointError where it cannot be loaded."""
        with Checkpoint.open(location) as checkpoint:
            count = checkpoint.config.get("num_hidden_layers")
            config = {
                key: value[:1] if isinstance(value, list) and len(value) == count else value
                for key, value in checkpoint.config.items()
            }
            model = load_model(checkpoint, config={**config, "num_hidden_layers": 1})
            tokenizer = load_tokenizer(checkpoint)
        return cls(location, for_inference(model, device), tokenizer)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, with the tokenizer's special tokens."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def measure(self, ids: Sequence[int], context: int) -> Distance:
        """Of a document. context: most tokens of a piece.

        Raises InputError for a token without a row in the embedding, for NaN, and for a model whose
        first layer does not attend to all earlier tokens.
        """
        if max(ids, default=0) >= self._rows:
            raise InputError(
                f"{self.name} has {self._rows:,} rows in its embedding, and its tokenizer gives "
                f"token {max(ids)}; give the model its own tokenizer."
            )
        parts = [(len(piece), self._piece(piece)) for piece in pieces(ids, context, self.start)]
        total = sum(size for size, _ in parts)
        if not total:
            return Distance(0.0, 0.0)
        return Distance(
            sum(size * part.strength for size, part in parts) / total,
            sum(size * part.variance for size, part in parts) / total,
        )

    @torch.no_grad()
    def _piece(self, ids: list[int]) -> Distance:
        if len(ids) < 4:
            return Distance(0.0, 0.0)
        try:
            self._model.base_model(torch.tensor([ids], device=self._device), use_cache=False)
        except _Measured as measured:
            return measured.distance
        raise InputError(
            f"long_dependency: the first layer of {self.name} has no attention that can be "
            "measured; give another model, or another measure."
        )


def _measure(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, sliding_window: int | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The attention function of `FirstLayer`, which raises `_Measured`."""
    length = query.shape[2]
    if sliding_window is not None and sliding_window < length:
        raise InputError(
            f"long_dependency: the first layer of the model sees only the last {sliding_window:,} "
            "tokens; give a model with full attention, or another measure."
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    raise _Measured(distant_attention(query[0], key[0], scale, length - 3 * (length // 4)))


def distant_attention(query: Tensor, key: Tensor, scale: float, distance: int) -> Distance:
    """DS and DV of causal attention of query [H, L, D] to key [Hk, L, D], from `distance` tokens
    on; weights in float32 (float64 for float64), sums in float64.

    Raises InputError for NaN.
    """
    heads, length, _ = query.shape
    key = key.repeat_interleave(heads // key.shape[0], 0)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    query, key = query.to(wide), key.to(wide).mT
    total = torch.zeros(2, heads, dtype=torch.float64, device=query.device)
    at = torch.arange(length, device=query.device)
    rows = max(1, _BLOCK // (heads * length))
    for low in range(distance, length, rows):
        high = min(low + rows, length)
        apart = at[low:high, None] - at[:high]
        weights = query[:, low:high] @ key[..., :high] * scale
        weights = weights.masked_fill(apart < 0, -torch.inf).softmax(-1)
        weights = weights.masked_fill(apart < distance, 0).double()
        total += torch.stack([weights.sum((1, 2)), weights.square().sum((1, 2))])
    entries = length**2
    variance = (total[1] - total[0] ** 2 / entries) / (entries - 1)
    result = Distance(float(total[0].mean()) / length, float(variance.mean()))
    if result.strength != result.strength:
        raise InputError(
            "long_dependency: the first layer of the model computes NaN on a document: its weights "
            "are broken; give another model."
        )
    return result


def standard_scores(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """z(DS) - z(DV) / 2 of documents (DS, DV) [n, 2]; a column without a deviation counts as 0."""
    if not len(table):
        return np.empty(0)
    deviation = table.std(0)
    z = (table - table.mean(0)) / np.where(deviation > 0, deviation, 1)
    return np.asarray(z[:, 0] - z[:, 1] / 2)
