"""A toy Llama that learns retrieval within minutes: 290k parameters, a vocabulary of 194 words.

It differs from a Llama in its initialisation. Embeddings have a standard deviation of 0.4, because
at 0.05 retrieval is not learned. Two heads of the first layer attend to the previous word and to
the one before it, which a model must learn before it can retrieve; they are trained like all
weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from regraft.data.toy_chat import TEMPLATE
from regraft.data.toy_language import IDS, WORDS, write_tokenizer
from regraft.input_files import JsonObject
from regraft.train.recipe.model import Toy
from regraft.write import library_writing, write_text

_EMBEDDING_STD = 0.4
_CONSTANT = 5.0  # value of the coordinate that the two heads read; large, so RMSNorm hardly varies
_SHARPNESS = 9.0  # of their attention; at 20 a larger theta alone would extend the context


def write_toy(folder: Path, toy: Toy, seed: int) -> None:
    """Write an untrained toy as a checkpoint folder with its tokenizer and a chat template."""
    model = untrained_model(toy.length, toy.theta, seed, **_sizes(toy))
    folder.mkdir(parents=True)
    # not save_pretrained, which under torchrun writes in the first process only
    write_text(folder / "config.json", json.dumps(toy_config(toy), indent=1))
    weights = folder / "model.safetensors"
    with library_writing(weights):
        save_file(dict(model.state_dict()), weights, {"format": "pt"})
    write_tokenizer(folder)
    write_text(folder / "chat_template.jinja", TEMPLATE)


def toy_config(toy: Toy) -> JsonObject:
    """The config.json of a toy."""
    values = config(toy.length, toy.theta, **_sizes(toy)).to_dict()
    return {**values, "architectures": ["LlamaForCausalLM"], "dtype": "float32"}


def _sizes(toy: Toy) -> dict[str, int]:
    return {
        "hidden_size": toy.hidden,
        "intermediate_size": toy.intermediate,
        "num_hidden_layers": toy.layers,
        "num_attention_heads": toy.heads,
        "num_key_value_heads": toy.kv_heads,
    }


def config(length: int, theta: float, **sizes: int) -> LlamaConfig:
    """A small Llama for `length` tokens, of two layers unless `sizes` say otherwise.

    transformers 5 reads RoPE only from this argument.
    """
    defaults = {
        "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    return LlamaConfig(
        vocab_size=len(WORDS),
        **{**defaults, **sizes},
        max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=False,
        initializer_range=0.05,
        bos_token_id=IDS["<s>"],
        eos_token_id=IDS["</s>"],
    )


def untrained_model(length: int, theta: float, seed: int, **sizes: int) -> LlamaForCausalLM:
    """An untrained model whose first two heads attend one and two words back."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config(length, theta, **sizes))
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=_EMBEDDING_STD)
    _initialise_offset_heads(model, theta)
    return model


@torch.no_grad()
def _initialise_offset_heads(model: LlamaForCausalLM, theta: float) -> None:
    """Let head h of layer 0 attend to the word h + 1 back, for h = 0, 1 (they share one key head).

    Every word's embedding gets one constant coordinate, the only one that queries and keys read.
    RoPE rotates the pair of coordinates of frequency w by w per word, so a query whose angle is
    w * distance behind that of the key has the largest product with it at that distance.
    """
    embedding, attention = model.model.embed_tokens.weight, model.model.layers[0].self_attn
    hidden, head = embedding.shape[1], attention.head_dim
    embedding[:, 0] = _CONSTANT
    normed = _CONSTANT / (_EMBEDDING_STD**2 + _CONSTANT**2 / hidden) ** 0.5  # after RMSNorm
    size = _SHARPNESS**0.5 / normed
    angle = theta ** (-torch.arange(0, head, 2) / head)
    for index, distance in enumerate((1, 2)):
        rows = attention.q_proj.weight[index * head : (index + 1) * head]
        rows.zero_()
        rows[:, 0] = size * torch.cat([torch.cos(angle * distance), -torch.sin(angle * distance)])
    attention.k_proj.weight[:head].zero_()
    attention.k_proj.weight[: head // 2, 0] = size
    attention.v_proj.weight[:head] *= 2
    attention.v_proj.weight[:head, 0] = 0
    attention.o_proj.weight[:, : 2 * head] *= 2
