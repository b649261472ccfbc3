"""What servers read of an adapter: limits of vLLM and llama.cpp, and the flags that give them the
adapter's context."""

from __future__ import annotations

import json
import shlex

from regraft.rope import ContextSpec

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of --max-lora-rank
PORTABLE_CAP = VLLM_RANKS[-1]


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank that takes an adapter of this rank, None if there is none."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def vllm_flags(base: str, context: ContextSpec, rank: int) -> str:
    """The command that serves base + adapter with the adapter's context in vLLM.

    vLLM's RoPE is the server's, not the adapter's, so it goes through --hf-overrides together with
    the length (vllm issue 9490); max-lora-rank must be one of the ranks it knows.
    """
    overrides = {
        "rope_parameters": context.rope_parameters,
        "max_position_embeddings": context.max_position_embeddings,
    }
    allowed = vllm_rank(rank)
    lora = (
        f"--enable-lora --max-lora-rank {allowed} --lora-modules long=ADAPTER"
        if allowed
        else f"(rank {rank} is more than vLLM takes: graft it with `regraft apply` instead)"
    )
    return (
        f"vllm serve {shlex.quote(base)} {lora} --max-model-len {context.max_position_embeddings} "
        f"--hf-overrides {shlex.quote(json.dumps(overrides))}"
    )


def llamacpp_flags(context: ContextSpec) -> str:
    """The flags that give llama.cpp the adapter's context."""
    flags = [f"-c {context.max_position_embeddings}", f"--rope-freq-base {context.theta:.0f}"]
    scaling = context.rope_parameters
    if context.rope_type == "linear":
        flags.append(f"--rope-scaling linear --rope-scale {scaling['factor']:g}")
    elif context.rope_type == "yarn":
        original = scaling.get("original_max_position_embeddings")
        flags.append(f"--rope-scaling yarn --rope-scale {scaling['factor']:g}")
        if original:
            flags.append(f"--yarn-orig-ctx {original}")
    elif context.rope_type != "default":
        return (
            f"(llama.cpp has no flags for {context.rope_type} RoPE: graft with `regraft apply` and "
            "convert the result)"
        )
    return f"llama-server -m BASE.gguf --lora ADAPTER.gguf {' '.join(flags)}"
