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
from rehearse import CONFIGS, Row, trace_row
from training import make_body

from regraft.parallel import Mesh
from regraft.train.estimate import step_time
from regraft.train.estimate.budget import Switches
from regraft.train.estimate.machine import parse_machine
from regraft.train.estimate.throughput import shape_of
from regraft.train.estimate.trace import MOMENTS, PARAMETERS
from regraft.train.step.learner import untrained_learner
from regraft.units import format_tokens

GIB = 2**30
OFFLOAD, TILED = {"offload": True}, {"tiled_mlp": 8192}
KEEP = {"keep_attention": True}
FUSED = {"fused_norms": True, "fused_rope": True, "fused_swiglu": True}
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
    "LoRA step without its parameters and moments (below)"
)
ROWS = [
    Published("benchmarks/results/gpu.md", Row("8B", "lora", 2**16, 1), 46.82, _H100),
    Published("benchmarks/results/gpu.md", Row("8B", "lora", 2**16, 1, memory=KEEP), 62.57, _H100),
    Published("benchmarks/results/gpu.md", Row("8B", "lora", 2**16, 1, memory=KEEP | FUSED), 57.57,
              _H100),
    Published("benchmarks/results/gpu.md (continued)",
              Row("8B", "lora", 2**17, 1, memory=OFFLOAD | TILED | KEEP), 36.31, _H100),
    Published("ArcticTraining, H200", Row("8B", "lora", 300_000, 1, memory=FUSED), 134.96, _ARCTIC,
              False),
    Published("ArcticTraining, H200", Row("8B", "lora", 650_000, 1, memory=OFFLOAD | FUSED), 126.81,
              _ARCTIC, False),
    Published("TRL 1.13, 8 x H100", Row("Qwen3-8B", "full", 2**20, 8, RING, OFFLOAD), 56.2,
              "their whole device, 56.2 GB read as GiB; RoPE without YaRN's factor"),
]  # fmt: skip

# Seconds of TRL 1.13's full fine-tuning step of 1,048,576 tokens on 8 x H100, layers recomputed.
STEPS = [("Qwen3-8B", 380.0), ("Qwen3-32B", 1295.0)]

# Not computed here: from the figures in the comments of ArcticTraining's recipes.
BY_HAND = """\
## ArcticTraining's rows by hand

Their settings (one H200, full fine-tune of Llama-3.1-8B, FlashAttention-3, parameters and Adam in
host memory by ZeRO-3, Liger's kernels) leave on the device a constant C, for each token the inputs
of 32 layers (2 d bytes each, d = 4,096; with offload one layer's and the one fetched ahead) and the
working set w of a layer. Their rows of 300,000 and 650,000 tokens differ in tokens and offload
alone, so they give both:

    C + 300,000 (64 d + w) = 134.96 GiB
    C + 650,000 ( 4 d + w) = 126.81 GiB     w = 41.3 d, C = 14.4 GiB

Here w is 41.35 d with fused_norms and fused_swiglu. So the two lines of the table above that leave
14.4 and 14.2 GiB to them agree. With that C:

| tokens | memory savers | theirs | here | apart |
|--:|---|--:|--:|--:|
| 1,200,000 | offload, tiles (w = 21.4 d) | 136.15 | 130.7 | -4% |
| 65,000 | none; norms and SwiGLU not fused, w = 61.35 d | 137.36 | 138.6 | +1% |

In the row with tiles attention sets the peak, by 1.2 d a token more than here; FlashAttention-3's
float32 sum of dq takes 4 d where it lives at that time, which the trace's kernel does not have. The
row of 65,000 keeps whole logits: 12 bytes of each of 65,000 x 128,256, 93 GiB."""


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
        "fragmentation, so a whole device has more. Formula: that of `regraft plan` for the same, "
        "against the trace.",
        "",
        "| run | model | method | tokens | devices | memory savers | measured | traced | above "
        "| formula | notes |",
        "|---|---|---|--:|--:|---|--:|--:|--:|--:|---|",
        *lines,
        "",
        "Not traced: ArcticTraining's first row (65,000 tokens, 137.4), whose loss keeps whole "
        "logits, and its last (1,200,000 with tiles, 136.2), which takes over ten minutes; TRL's "
        "Qwen3-32B on 8 x H100 (60.8), whose float32 parameters and moments alone would take 46 "
        "GiB of a device here.",
        "",
        "## Time",
        "",
        "Seconds of a full fine-tuning step of 1,048,576 tokens on 8 x H100: TRL 1.13's, and by "
        "the formula of `regraft plan`, all of a layer recomputed.",
        "",
        "| model | TRL | plan | apart |",
        "|---|--:|--:|--:|",
        *(compare_seconds(*step) for step in ([] if quick else STEPS)),
        "",
        BY_HAND,
    ]
    record("published", "\n".join(text), keep=not quick)


def compare(published: Published) -> str:
    """The line of a run."""
    row = published.row
    traced, formula = trace_row(row)
    live = traced.device_bytes
    apart = formula / live - 1
    if not published.state:
        live -= traced.highest[PARAMETERS] + traced.highest[MOMENTS]
    live /= GIB
    return (
        f"| {published.source} | {row.model} | {row.method} | {format_tokens(row.tokens)} "
        f"| {row.devices} | {', '.join(row.memory)} | {published.measured:.1f} | {live:.1f} "
        f"| {published.measured - live:+.1f} | {apart:+.1%} | {published.note} |"
    )


def compare_seconds(model: str, measured: float) -> str:
    """The line of a step of TRL's."""
    body, mesh = make_body("full", {}), Mesh.create(device="cpu")
    shape = shape_of(untrained_learner(body, CONFIGS[model], model, mesh))
    flops = step_time.step_flops(shape, 2**20, full=True, checkpoint=True)
    traffic = step_time.step_traffic(shape, Switches(), 2**20)
    seconds = step_time.step_seconds(shape, parse_machine("8xH100", None), flops, traffic, 1)
    return f"| {model} | {measured:.0f} | {seconds:.0f} | {seconds / measured - 1:+.0%} |"


if __name__ == "__main__":
    main()
