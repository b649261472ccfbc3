"""The attention function for transformers: `attn_implementation="regraft"`.

The function has no state. All that it needs of the whole sequence (the mesh, how the batch was cut,
where documents begin) is a `Shard`, which the model receives as the keyword argument
`context_parallel` and transformers passes to every layer in `**kwargs`, also when gradient
checkpointing recomputes it. Positions act in the rotary embedding alone, so a jump in them (PoSE)
does not begin another document, as it does in transformers' own masks.

What this attention would ignore is refused: a padding mask, dropout, sliding windows, soft caps,
attention sinks, a key-value cache, or a call without `context_parallel`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.parallel.exchange.ulysses import check_heads
from regraft.parallel.mesh import Processes
from regraft.parallel.shards import KEY, Shard

NAME = "regraft"

_UNSUPPORTED = {
    "sliding_window": "a sliding window",
    "softcap": "a soft cap on the scores",
    "s_aux": "attention sinks",
}


def attend_sequence(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    context_parallel: Shard | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [B, H, s, D], key and value [B, Hk, s, D] of this rank's tokens -> [B, s, H, D].

    query and key may be wider than value (a rotation in float32); they are cast to its type.
    Raises InputError for what this attention does not do.
    """
    if context_parallel is None:
        raise InputError(
            f"Attention '{NAME}' was called without `{KEY}`: call the model with all that "
            "Mesh.cut returns, or give it another attn_implementation."
        )
    if attention_mask is not None:
        raise InputError(_MASK)
    for name, what in _UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise InputError(
                f"{type(module).__name__} uses {what}, which attention '{NAME}' does not support."
            )
    if dropout:
        raise InputError(f"Attention '{NAME}' has no dropout: set attention_dropout to 0.")
    if not getattr(module, "is_causal", True):
        raise InputError(f"{type(module).__name__} is not causal, which '{NAME}' always is.")
    if query.shape[2] != key.shape[2]:
        raise InputError(
            f"Attention '{NAME}' was given {key.shape[2]} keys for {query.shape[2]} queries: "
            "it does not work with a key-value cache; generate with another attn_implementation."
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)
    return context_parallel.attend(query, key, value, scale).transpose(1, 2), None


_MASK = (
    f"Attention '{NAME}' takes no padding mask: pad on the right and give the padding the label "
    "-100, or name documents; nothing before the padding sees it."
)


def refuse_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """Mask builder for transformers: no mask. Raises InputError for a mask that hides tokens."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise InputError(_MASK)


def attach(model: torch.nn.Module, mesh: Processes | None = None) -> None:
    """Make a transformers or PEFT model use this attention. The model must then be called with
    all that `Mesh.cut` returns. Raises InputError where the model cannot use it, or its heads do
    not divide over `mesh`."""
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

    AttentionInterface.register(NAME, attend_sequence)
    AttentionMaskInterface.register(NAME, refuse_mask)
    inner = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    if inner is None or not inner._can_set_attn_implementation():
        raise InputError(
            f"{type(model).__name__} does not choose its attention by name, so it cannot be "
            "trained over a cut sequence."
        )
    config = inner.config.get_text_config()
    for key, what in (
        ("sliding_window", "a sliding window"),
        ("attn_logit_softcapping", "a soft cap"),
    ):
        used = key != "sliding_window" or getattr(config, "use_sliding_window", True)
        if getattr(config, key, None) is not None and used:
            raise InputError(
                f"This model's attention has {what}, which attention '{NAME}' does not support."
            )
    if getattr(config, "attention_dropout", 0.0):
        raise InputError(f"Attention '{NAME}' has no dropout: set attention_dropout to 0.")
    if mesh is not None:
        check_heads(config.num_key_value_heads, mesh.ulysses)
    inner.set_attn_implementation(NAME)
