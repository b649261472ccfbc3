"""Attention with repeated heads, which the layers of a model use on a GPU."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from regraft.checkpoint.hf.layers import EXPANDED, use_expanded_attention

_SIZES = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("window", [None, 8])
def test_repeated_heads_give_the_logits_of_grouped_ones(window):
    """The difference is float64 rounding: sums over 24 keys and 32 channels in another order."""
    torch.manual_seed(0)
    if window is None:
        model = LlamaForCausalLM(LlamaConfig(**_SIZES))
    else:
        model = MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=window))
    model = model.double().eval()
    ids = torch.randint(32, (1, 24))
    with torch.no_grad():
        grouped = model(input_ids=ids).logits
        use_expanded_attention(model)
        repeated = model(input_ids=ids).logits
    assert model.config._attn_implementation == EXPANDED
    assert torch.allclose(repeated, grouped, rtol=0, atol=1e-12 * float(grouped.abs().max()))
    with torch.no_grad():
        changed = model(input_ids=ids.flip(1)).logits
    assert not torch.allclose(changed, grouped)
