"""Serving an adapter: limits of vLLM and llama.cpp, and the flags that set the adapter's context.

`VLLM_LIMITS` is the one list of what vLLM does not load. Every adapter with one rank is checked
against it when it is written; cards and `regraft inspect` print the result, and the flags take the
rank from it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from regraft.records import AdapterRecord
from regraft.rope import ContextSpec
from regraft.units import format_tokens

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of --max-lora-rank
PORTABLE_CAP = VLLM_RANKS[-1]


@dataclass(frozen=True)
class AdapterFacts:
    """The properties of an adapter that decide which programs load it.

    rank: the highest as stored; uniform: one rank and scale for all modules; patterns: of ranks
    and alphas in its config; whole_tensors: in modules_to_save; differences: dense tensors beside
    the factors.
    """

    rank: int
    uniform: bool
    patterns: int = 0
    whole_tensors: int = 0
    differences: int = 0


@dataclass(frozen=True)
class Limit:
    """A limit of a program. problem: describes how an adapter breaks it, None if it does not."""

    name: str
    problem: Callable[[AdapterFacts], str | None]


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank that takes an adapter of this rank, None if there is none."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def _whole_tensors(adapter: AdapterFacts) -> str | None:
    if not adapter.whole_tensors:
        return None
    return f"it refuses whole tensors ({adapter.whole_tensors} in modules_to_save)"


def _one_scale(adapter: AdapterFacts) -> str | None:
    if adapter.uniform:
        return None
    if adapter.patterns:
        return "it ignores rank and alpha patterns, so modules get a wrong scale"
    return "it has one scale for all modules, so some get a wrong one"


def _rank(adapter: AdapterFacts) -> str | None:
    if vllm_rank(adapter.rank) is not None:
        return None
    return f"rank {adapter.rank} is above its {PORTABLE_CAP}"


# vllm/config/lora.py (ranks) and vllm/lora/peft_helper.py (the rest) as of July 2026; issues 9280,
# 14978 and pull request 48437.
VLLM_LIMITS = (
    Limit("no modules_to_save", _whole_tensors),
    Limit("one rank and scale, no patterns", _one_scale),
    Limit("a rank of its list", _rank),
)


def vllm_problems(adapter: AdapterFacts) -> list[str]:
    """Why vLLM does not load an adapter, one phrase for each limit that it breaks."""
    return [problem for limit in VLLM_LIMITS if (problem := limit.problem(adapter)) is not None]


def readers(adapter: AdapterFacts, length: int | None = None) -> dict[str, str]:
    """Program -> how it loads an adapter and what it leaves out, or why it does not.

    length: the adapter's context, if it is not its base's.
    """
    count = adapter.differences
    left_out = f", without the {count} dense differences" if count else ""
    peft = f"the factors{left_out}" if count else "yes"
    if problems := vllm_problems(adapter):
        vllm = f"no: {problems[0]}"
    else:
        overrides = f" and --hf-overrides for {format_tokens(length)}" if length else ""
        vllm = f"with --max-lora-rank {vllm_rank(adapter.rank)}{overrides}{left_out}"
    if adapter.whole_tensors or count:
        what = "whole tensors" if adapter.whole_tensors else "dense differences"
        llamacpp = f"no: it loads no {what} from a LoRA"
    else:
        llamacpp = f"by regraft export{', with the RoPE flags' if length else ''}"
    return {"regraft apply": "yes", "PEFT": peft, "vLLM": vllm, "llama.cpp": llamacpp}


def readers_of_record(record: AdapterRecord) -> dict[str, str]:
    """`readers` of an adapter that regraft writes."""
    assert record.totals is not None
    before, after = record.context.base, record.context.extended
    ranks = {module.rank for module in record.modules.values()}
    uniform = record.totals.rank_stored is not None or len(ranks) == 1
    facts = AdapterFacts(
        rank=record.totals.rank_stored or record.totals.rank_max,
        uniform=uniform,
        patterns=0 if uniform else len(ranks) - 1,
        differences=len(record.differences),
    )
    return readers(facts, after.max_position_embeddings if before != after else None)


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


def model_commands(name: str, context: ContextSpec) -> dict[str, str]:
    """How a model whose config has the context is run at its full length, by program."""
    folder, length = shlex.quote(name), context.max_position_embeddings
    python = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto", device_map="auto")'
    )
    gguf = shlex.quote(f"{name}.gguf")
    return {
        "transformers": python,
        "vLLM": f"vllm serve {folder} --max-model-len {length}",
        "llama.cpp": f"regraft export {folder} -o {gguf}\nllama-server -m {gguf} -c {length}",
    }
