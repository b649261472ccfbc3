"""What servers read of an adapter: limits of vLLM and llama.cpp, and the flags that give them the
adapter's context."""

from __future__ import annotations

import json
import shlex

from regraft.records import AdapterRecord
from regraft.rope import ContextSpec
from regraft.units import format_tokens

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of --max-lora-rank
PORTABLE_CAP = VLLM_RANKS[-1]


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank that takes an adapter of this rank, None if there is none."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def readers(
    *,
    rank: int,
    uniform: bool,
    whole_tensors: int = 0,
    differences: int = 0,
    length: int | None = None,
) -> dict[str, str]:
    """Which programs load an adapter of this layout, and what they leave out.

    rank: the highest as stored; uniform: one rank and alpha for all modules; whole_tensors: in
    modules_to_save; differences: dense tensors beside the factors; length: the adapter's context,
    if it is not its base's.
    """
    left_out = f", without the {differences} dense differences" if differences else ""
    peft = f"the factors{left_out}" if differences else "yes"
    if whole_tensors:
        vllm = f"no: it refuses whole tensors ({whole_tensors} in modules_to_save)"
    elif not uniform:
        vllm = "no: it ignores rank and alpha patterns, so modules get a wrong scale"
    elif (allowed := vllm_rank(rank)) is None:
        vllm = f"no: rank {rank} is above its {PORTABLE_CAP}"
    else:
        overrides = f" and --hf-overrides for {format_tokens(length)}" if length else ""
        vllm = f"with --max-lora-rank {allowed}{overrides}{left_out}"
    if whole_tensors:
        llamacpp = "no: its converter refuses whole embeddings and heads"
    elif not uniform:
        llamacpp = "no: it has one alpha, so modules of a lower rank are too strong"
    else:
        llamacpp = f"converted to GGUF{', with the RoPE flags' if length else ''}{left_out}"
    return {"regraft apply": "yes", "PEFT": peft, "vLLM": vllm, "llama.cpp": llamacpp}


def readers_of_record(record: AdapterRecord) -> dict[str, str]:
    """`readers` of an adapter that regraft writes."""
    assert record.totals is not None
    before, after = record.context.base, record.context.extended
    ranks = {module.rank for module in record.modules.values()}
    return readers(
        rank=record.totals.rank_stored or record.totals.rank_max,
        uniform=record.totals.rank_stored is not None or len(ranks) == 1,
        differences=len(record.differences),
        length=after.max_position_embeddings if before != after else None,
    )


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


def llamacpp_flags(context: ContextSpec, adapter: str = "ADAPTER.gguf") -> str:
    """The command that serves base + adapter with the adapter's context in llama.cpp.

    llama-server never gives a slot more tokens than the base's metadata says it was trained on, so
    that number is overridden, too.
    """
    length = context.max_position_embeddings
    flags = [
        f"-c {length}",
        f"--override-kv llama.context_length=int:{length}",
        f"--rope-freq-base {context.theta:.0f}",
    ]
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
            "`regraft export` the result)"
        )
    return f"llama-server -m BASE.gguf --lora {shlex.quote(adapter)} {' '.join(flags)}"
