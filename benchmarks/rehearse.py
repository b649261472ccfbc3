"""Training steps of Llama-3-8B's and 70B's shapes on simulated devices: errors, bytes, messages.

    python benchmarks/rehearse.py [--rows 1,2,3]

Each row is the whole step of `regraft plan --trace`: attention and its exchange, FSDP2, memory
savers, loss and optimizer run by shape alone, on one process of as many as the row says. A shape,
type or mesh that does not fit raises here as on GPUs. Every row is printed when it is done.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, replace
from typing import Any

from harness import add_quick, environment, print_each, record
from training import make_body

from regraft.parallel import Mesh
from regraft.train.estimate import budget
from regraft.train.estimate.machine import parse_machine
from regraft.train.estimate.plan import switches_of
from regraft.train.estimate.throughput import shape_of
from regraft.train.estimate.trace import Trace, trace_stage
from regraft.train.step.learner import untrained_learner
from regraft.units import format_bytes, format_tokens

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "rope_theta": 5e5, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64,
}  # fmt: skip
TOY = LLAMA_8B | {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
SAVERS = {"offload": True, "tiled_mlp": 8192}


@dataclass(frozen=True)
class Row:
    """One step: model, method, tokens of its row, the mesh and the memory savers."""

    model: str
    method: str
    tokens: int
    devices: int
    parallel: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)


ROWS = [
    Row("8B", "lora", 2**16, 1),
    Row("8B", "lora", 2**18, 1, memory=SAVERS | {"keep_attention": True}),
    Row("8B", "lora", 2**19, 1, memory=SAVERS | {"keep_attention": True, "fused_norms": True}),
    Row("8B", "lora", 2**20, 8, {"context": 8, "algorithm": "ring"}, SAVERS),
    Row("8B", "lora", 2**20, 8, {"context": 2, "ulysses": 4}, SAVERS | {"keep_attention": True}),
    Row("8B", "full", 2**19, 8, {"context": 8, "algorithm": "gather"}, SAVERS),
    Row("8B", "full", 2**17, 64, {"context": 2, "ulysses": 4, "shard": 4, "replicate": 2}),
    Row("70B", "lora", 2**18, 8, {"context": 1, "ulysses": 8}, SAVERS),
    Row("70B", "full", 2**21, 64, {"context": 8, "ulysses": 8}, SAVERS),
    Row("70B", "full", 2**22, 1024, {"context": 32, "ulysses": 8, "shard": 4}, SAVERS),
]  # fmt: skip
QWEN3_8B = LLAMA_8B | {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "intermediate_size": 12288,
    "num_hidden_layers": 36, "vocab_size": 151936, "head_dim": 128, "rope_theta": 1e6,
}  # fmt: skip
QWEN3_32B = QWEN3_8B | {
    "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
    "num_attention_heads": 64,
}  # fmt: skip
CONFIGS = {
    "8B": LLAMA_8B, "70B": LLAMA_70B, "Qwen3-8B": QWEN3_8B, "Qwen3-32B": QWEN3_32B, "toy": TOY,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", help="numbers of the rows, as 1,2; default: all")
    add_quick(parser)
    arguments = parser.parse_args()
    rows = ROWS
    if arguments.quick:
        rows = [Row("toy", "full", 256, 4, {"ulysses": 2, "shard": 2}, {"offload": True})]
    elif arguments.rows:
        rows = [ROWS[int(number) - 1] for number in arguments.rows.split(",")]
    lines = print_each(map(rehearse, rows))
    text = [
        "# Training steps on simulated devices",
        "",
        environment("transformers"),
        "",
        "LoRA of rank 16 on all linear layers, or everything in float32 with AdamW; bfloat16 "
        "arithmetic. Live tensors are the peak of a device, the formula is that of `regraft plan` "
        "without its constant for what no tensor shows; sent is by each device in a step. Linear: "
        "whether six layers lie on the line through four and five.",
        "",
        "| model | method | tokens | mesh | memory savers | live | formula | host, a device "
        "| sent | linear | traced, CPU s |",
        "|---|---|--:|---|---|--:|--:|--:|---|---|--:|",
        *lines,
    ]
    record("rehearse", "\n".join(text), keep=not (arguments.quick or arguments.rows))


def rehearse(row: Row) -> str:
    """The line of a row's table."""
    began = time.process_time()
    traced, formula = trace_row(row)
    seconds = time.process_time() - began
    mesh = " x ".join(f"{name} {size}" for name, size in row.parallel.items()) or "one device"
    savers = ", ".join(name for name in row.memory)
    sent = ", ".join(
        f"{name} {format_bytes(size)}"
        for name, size in sorted(traced.sent.items(), key=lambda item: -item[1])
        if size > sum(traced.sent.values()) / 1000
    )
    return (
        f"| {row.model} | {row.method} | {format_tokens(row.tokens)} | {mesh} | {savers} "
        f"| {format_bytes(traced.device_bytes)} | {formula / traced.device_bytes - 1:+.0%} "
        f"| {format_bytes(traced.host_bytes)} | {sent} | {'yes' if traced.exact else 'no'} "
        f"| {seconds:.0f} |"
    )


def trace_row(row: Row) -> tuple[Trace, float]:
    """The step, and the formula's bytes of its live tensors on a device."""
    config = CONFIGS[row.model]
    memory = {"keep_attention": False, **row.memory}
    body = make_body(row.method, memory).model_copy(update={"dtype": "bfloat16"})
    body = body.model_copy(update={"parallel": body.parallel.model_copy(update=row.parallel)})
    traced = trace_stage(body, config, row.tokens, 1, row.devices)
    shape = shape_of(untrained_learner(body, config, row.model, Mesh.create(device="cpu")))
    switches = replace(switches_of(body, parse_machine("H100", None)), overhead=0)
    context = row.parallel.get("context", 1) * row.parallel.get("ulysses", 1)
    copies = row.parallel.get("replicate", 1)
    formula, _ = budget.memory(shape, switches, row.tokens, context, row.devices, copies)
    return traced, formula


if __name__ == "__main__":
    main()
