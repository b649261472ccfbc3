"""regraft extract-lora against mergekit-extract-lora: one decoder layer of Llama-3-8B, bfloat16.

    python benchmarks/extract.py [--layers 1] [--rank 64] [-o bench-out] [--optimum all]

Each runs in a process of its own on the same files from a warm page cache; wall, CPU and peak
memory are those of the process with its imports. A second, larger run of regraft gives the cost of
a further layer, which is what an 8B model is made of. Each is the quickest of three runs, of two
for mergekit. Both adapters are then measured in float64
against the true difference, and against the exact optimum from the Gram matrix's eigenvalues.
"""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path

import torch
from harness import Child, add_quick, best, environment, record, run, script, warm
from llama8b import LLAMA_8B, PROJECTIONS, TOY, make

from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--optimum", default="self_attn.k_proj,self_attn.q_proj")
    parser.add_argument("--skip-mergekit", action="store_true")
    add_quick(parser)
    arguments = parser.parse_args()
    quick = arguments.quick
    out, layers = arguments.out.resolve(), arguments.layers
    sizes, rank, times = (TOY, 8, 1) if quick else (LLAMA_8B, arguments.rank, 3)
    base, extended = (make(out, layers, kind, sizes) for kind in ("base", "extended"))
    more = layers + 2
    big = tuple(make(out, more, kind, sizes) for kind in ("base", "extended"))

    rows: list[tuple[str, Child | None, str]] = []
    _regraft(base, extended, out / "lora", rank)  # compiled bytecode, the cache of tensors' roles
    ours = best(lambda: _regraft(base, extended, out / "lora", rank, "--no-verify"), times)
    rows.append((f"regraft, {layers} layer", ours, ""))
    checked = best(lambda: _regraft(base, extended, out / "lora", rank), times)
    rows.append((f"regraft, {layers} layer, read back with PEFT", checked, ""))
    large = best(lambda: _regraft(*big, out / "lora-large", rank, "--no-verify"))
    further = (large.wall - ours.wall) / (more - layers)
    rows.append((f"regraft, {more} layers", large, f"{further:.2f} s for each further layer"))
    if not arguments.skip_mergekit:
        peer = best(
            lambda: _mergekit(base, extended, out / "lora-mergekit", rank), 1 if quick else 2
        )
        rows.append((f"mergekit-extract-lora, {layers} layer", peer, ""))
        start = run([script("mergekit-extract-lora"), "--help"])
        rows.append(("mergekit-extract-lora --help", start, "its imports alone"))
    table = [
        f"# Extraction, rank {rank}, {layers} layer(s) of Llama-3-8B's shapes, bfloat16",
        "",
        environment("transformers", "peft", *(() if arguments.skip_mergekit else ("mergekit",))),
        "",
        "| | wall s | CPU s | peak memory | |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {child.wall:.1f} | {child.cpu:.1f} | {child.peak / 1e9:.2f} GB | {note} |"
            for name, child, note in rows
            if child
        ),
        "",
    ]
    if not arguments.skip_mergekit:
        layer = (peer.wall - start.wall) / layers
        table += [
            f"A layer: mergekit {layer:.1f} s (imports taken off), regraft {further:.2f} s (the "
            f"larger run less the smaller): **{layer / further:.0f}x**. Whole commands, "
            f"imports and all: {peer.wall / ours.wall:.0f}x ({peer.wall / checked.wall:.0f}x with "
            f"the PEFT check), {peer.peak / ours.peak:.1f}x less memory. The roles of the tensors "
            "came from the cache of an earlier run, as they do from the second command on.",
            "",
        ]
    table += _errors(base, extended, out, rank, arguments)
    record("extract", "\n".join(table), keep=not quick)


def _regraft(base: Path, extended: Path, out: Path, rank: int, *flags: str) -> Child:
    warm(base, extended)
    command = [script("regraft"), "extract-lora", str(base), str(extended), "-o", str(out)]
    return run([*command, "--rank", str(rank), "--overwrite", "--quiet", *flags])


def _mergekit(base: Path, extended: Path, out: Path, rank: int) -> Child:
    shutil.rmtree(out, ignore_errors=True)
    warm(base, extended)
    return run(
        [
            script("mergekit-extract-lora"), "--model", str(extended), "--base-model", str(base),
            "--out-path", str(out), "--max-rank", str(rank), "-i", "proj",
            "--no-write-model-card", "--no-copy-tokenizer",
        ],
        HF_HUB_OFFLINE="1",
    )  # fmt: skip


def _errors(
    base: Path, extended: Path, out: Path, rank: int, arguments: argparse.Namespace
) -> list[str]:
    """||D - BA|| / ||D|| of both adapters in float64, and of the exact truncated SVD."""
    adapters = {"regraft": Adapter.open(out / "lora")}
    if not arguments.skip_mergekit:
        adapters["mergekit"] = Adapter.open(out / "lora-mergekit")
    proven = adapters["regraft"].record.modules
    with_optimum = list(PROJECTIONS) if arguments.optimum == "all" else arguments.optimum.split(",")
    lines = [
        "Error ||D - BA|| / ||D|| of the stored adapters, in float64:",
        "",
        f"| module | {' | '.join(adapters)} | exact SVD | regraft / exact | proven bound |",
        f"|---|{'---|' * (len(adapters) + 3)}",
    ]
    with Checkpoint.open(base) as b, Checkpoint.open(extended) as e:
        for name in PROJECTIONS:
            module = f"model.layers.0.{name}"
            delta = e.tensor(f"{module}.weight").double() - b.tensor(f"{module}.weight").double()
            norm = float(delta.norm())
            errors = {}
            for program, adapter in adapters.items():
                up, down = adapter.factors(f"{module}.weight")
                errors[program] = float((delta - up.double() @ down.double()).norm()) / norm
            exact = "", ""
            if name in with_optimum:
                small = delta if delta.shape[0] <= delta.shape[1] else delta.T
                values = torch.linalg.eigvalsh(small @ small.T)
                best = math.sqrt(max(float(values[:-rank].sum()), 0.0)) / norm
                exact = f"{best:.6f}", f"{errors['regraft'] / best:.6f}"
            cells = " | ".join(f"{error:.6f}" for error in errors.values())
            bound = proven[module].truncation.error_bound_over_optimum
            lines.append(f"| {name} | {cells} | {exact[0]} | {exact[1]} | {bound:.6f} |")
    lines += [
        "",
        "The stored factors are bfloat16 in both adapters. The proven bound is regraft.json's, "
        "before that rounding: no adapter of this rank can be better by more.",
    ]
    return lines


if __name__ == "__main__":
    main()
