"""Sizes of Llama-3-8B, and of models with some of its layers."""

from __future__ import annotations

from regraft.train.estimate.budget import Shape

LLAMA_8B = Shape(8_030_261_248, 8_030_261_248, 4096, 32, 14336, 128256, 1024, 32, 128)
LORA = 42_000_000  # parameters of rank 16 on all linear layers


def llama(layers: int, everything: bool) -> Shape:
    """`layers` layers; trained: everything, or a LoRA."""
    parameters = layers * 218_112_000 + 2 * 128256 * 4096 + 4096
    trained = parameters if everything else LORA * layers // 32
    return Shape(parameters, trained, 4096, layers, 14336, 128256, 1024, 32, 128)
