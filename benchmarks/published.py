"""Traced memory beside what was measured: on one H100, by ArcticTraining and by TRL.

    python benchmarks/published.py

Live tensors of the steps that `regraft plan --trace` runs by shape alone. Of the runs of others the
shape and the memory savers are expressed as far as this package has them; what it lacks is named
beside each row.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from harness import add_quick, environment, print_each, record
from rehearse import Row, trace_row

from regraft.train.estimate.trace import MOMENTS, PARAMETERS
from regraft.units import format_tokens

GIB = 2**30
OFFLOAD, TILED = {"offload": True}, {"tiled_mlp": 8192}
ALL = OFFLOAD | TILED | {"keep_attention": True}
RING = {"context": 8, "algorithm": "ring"}


@dataclass(frozen=True)
class Published:
    """A step of which the memory was measured, in GiB. state: whether theirs has parameters and
    moments on the device; else the traced ones are left out. note: what differs."""

    source: str
    row: Row
    measured: float
    note: str
    state: bool = True


_H100 = "live tensors by torch's allocator, cuBLAS's workspace of 0.06 among them"
_ARCTIC = (
    "their whole device, without parameters and optimizer, which are in host memory; traced is a "
    "LoRA step without its parameters and moments; Liger's fused SwiGLU is not expressed"
)
ROWS = [
    Published("benchmarks/results/gpu.md", Row("8B", "lora", 2**16, 1), 46.82, _H100),
    Published("benchmarks/results/gpu.md",
              Row("8B", "lora", 2**16, 1, memory={"keep_attention": True}), 62.57, _H100),
    Published("benchmarks/results/gpu.md (continued)", Row("8B", "lora", 2**17, 1, memory=ALL),
              36.31, _H100),
    Published("ArcticTraining, H200", Row("8B", "lora", 300_000, 1, memory={"fused_norms": True}),
              134.96, _ARCTIC, False),
    Published("ArcticTraining, H200",
              Row("8B", "lora", 650_000, 1, memory=OFFLOAD | {"fused_norms": True}), 126.81,
              _ARCTIC, False),
    Published("TRL 1.13, 8 x H100", Row("Qwen3-8B", "full", 2**20, 8, RING, OFFLOAD), 56.2,
              "their whole device, 56.2 GB read as GiB; RoPE without YaRN's factor"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_quick(parser)
    quick = parser.parse_args().quick
    rows = [Published("toy", Row("toy", "lora", 64, 1), 1.0, "none", False)] if quick else ROWS
    lines = print_each(map(compare, rows))
    text = [
        "# Traced memory beside published measurements",
        "",
        environment("transformers"),
        "",
        "GiB of a device. Live tensors are without CUDA's context, libraries' buffers and "
        "fragmentation, so a whole device has more.",
        "",
        "| run | model | method | tokens | devices | memory savers | measured | traced | above "
        "| notes |",
        "|---|---|---|--:|--:|---|--:|--:|--:|---|",
        *lines,
        "",
        "Not traced: ArcticTraining's first row (65,000 tokens, 137.4), whose loss keeps whole "
        "logits, and its last (1,200,000 with tiles, 136.2), which takes over ten minutes; TRL's "
        "Qwen3-32B on 8 x H100 (60.8), whose float32 parameters and moments alone would take 46 "
        "GiB of a device here.",
    ]
    record("published", "\n".join(text), keep=not quick)


def compare(published: Published) -> str:
    """The line of a run."""
    row = published.row
    traced, _ = trace_row(row)
    live = traced.device_bytes
    if not published.state:
        live -= traced.highest[PARAMETERS] + traced.highest[MOMENTS]
    live /= GIB
    return (
        f"| {published.source} | {row.model} | {row.method} | {format_tokens(row.tokens)} "
        f"| {row.devices} | {', '.join(row.memory)} | {published.measured:.1f} | {live:.1f} "
        f"| {published.measured - live:+.1f} | {published.note} |"
    )


if __name__ == "__main__":
    main()
