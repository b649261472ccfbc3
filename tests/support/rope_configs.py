"""Configs of models with RoPE, for tests of `regraft.rope`."""

from __future__ import annotations

import json

from regraft.rope import ContextSpec

HEAD_DIM = 64
SHORT = [1.0 + 0.01 * i for i in range(HEAD_DIM // 2)]
LONG = [1.0 + 0.5 * i for i in range(HEAD_DIM // 2)]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_3 = {"model_type": "llama", "max_position_embeddings": 8192, "rope_theta": 500000.0}
LLAMA_31 = {**LLAMA_3, "max_position_embeddings": 131072, "rope_scaling": LLAMA3}
GEMMA_3 = {
    "model_type": "gemma3_text",
    "max_position_embeddings": 131072,
    "rope_theta": 1000000,
    "rope_local_base_freq": 10000,
    "rope_scaling": {"rope_type": "linear", "factor": 8},
}


def plain(theta: float = 500000.0, length: int = 8192) -> ContextSpec:
    return ContextSpec({"rope_type": "default", "rope_theta": theta}, length)


def as_transformers_reads(config: dict) -> ContextSpec:
    """The context that transformers 5 reads from a raw config."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    read = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
    read = read.get_text_config()
    original = getattr(read, "original_max_position_embeddings", None)
    return ContextSpec(read.rope_parameters, read.max_position_embeddings, original)
