"""Sizes of Llama-3-8B, and of models with some layers of it, of Llama-3-70B or of Qwen3."""

from __future__ import annotations

from regraft.train.estimate.budget import Shape

LLAMA_8B = Shape(8_030_261_248, 8_030_261_248, 4096, 32, 14336, 128256, 1024, 32, 128)
LLAMA_8B_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 32, "max_position_embeddings": 8192,
    "rope_theta": 5e5, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
LORA = 42_000_000  # parameters of rank 16 on all linear layers


def llama(layers: int, everything: bool) -> Shape:
    """`layers` layers; trained: everything, or a LoRA."""
    parameters = layers * 218_112_000 + 2 * 128256 * 4096 + 4096
    trained = parameters if everything else LORA * layers // 32
    return Shape(parameters, trained, 4096, layers, 14336, 128256, 1024, 32, 128)


def llama_70b(layers: int, everything: bool) -> Shape:
    """The same with layers of Llama-3-70B."""
    parameters = layers * 855_654_400 + 2 * 128256 * 8192 + 8192
    trained = parameters if everything else 2_588_672 * layers
    return Shape(parameters, trained, 8192, layers, 28672, 128256, 1024, 64, 128)


def qwen3_8b(layers: int, everything: bool) -> Shape:
    """The same with layers of Qwen3-8B."""
    parameters = layers * 192_946_432 + 2 * 151936 * 4096 + 4096
    trained = parameters if everything else 1_212_416 * layers
    return Shape(parameters, trained, 4096, layers, 12288, 151936, 1024, 32, 128, True)


def qwen3_32b(layers: int, everything: bool) -> Shape:
    """The same with layers of Qwen3-32B, whose queries are wider than its hidden states."""
    parameters = layers * 487_598_336 + 2 * 151936 * 5120 + 5120
    trained = parameters if everything else 2_097_152 * layers
    return Shape(parameters, trained, 5120, layers, 25600, 151936, 1024, 64, 128, True)
