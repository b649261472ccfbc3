"""regraft apply against `cp` of the same files and against PEFT's merge_and_unload.

    python benchmarks/apply.py [--layers 2 8] [--rank 64] [-o bench-out]

A derivative with Llama-3-8B's layer shapes in bfloat16 gets a rank-64 adapter. Each contender runs
in a process of its own on files in the page cache; PEFT's is the usual script (load the model, load
the adapter, merge, save). `cp` leaves the bytes in the page cache; regraft syncs them to the disk
before it publishes, so `cp, then sync` is there too. Results are compared bit by bit.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from harness import Child, add_quick, best, environment, record, run, script, warm
from llama8b import LLAMA_8B, TOY, make

from regraft.checkpoint.read.source import Checkpoint

PEFT_MERGE = """
import sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model = PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload()
model.save_pretrained(sys.argv[3])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    add_quick(parser)
    arguments = parser.parse_args()
    quick = arguments.quick
    if quick:
        arguments.layers, arguments.rank = [1, 2], 4
    lines = [
        f"# Apply, rank {arguments.rank}, Llama-3-8B's layer shapes, bfloat16",
        "",
        environment("transformers", "peft"),
        "",
        "| layers | | wall s | CPU s | peak memory | against cp |",
        "|---|---|---|---|---|---|",
    ]
    notes, all_rows = [], {}
    for layers in arguments.layers:
        rows, note = _contend(arguments.out.resolve(), layers, arguments.rank, quick)
        cp, all_rows[layers] = rows["cp"].wall, rows
        lines += [
            f"| {layers} | {name} | {c.wall:.2f} | {c.cpu:.2f} | {c.peak / 1e9:.2f} GB "
            f"| {c.wall / cp:.1f}x |"
            for name, c in rows.items()
        ]
        notes.append(note)
    fewest, most = min(all_rows), max(all_rows)
    if fewest < most:
        further = {
            name: (all_rows[most][name].wall - child.wall) / (most - fewest)
            for name, child in all_rows[fewest].items()
        }
        notes += ["", "A further layer (436 MB), without the start of the process:"]
        notes[-1] += " " + ", ".join(f"{name} {t:.2f} s" for name, t in further.items()) + "."
    record("apply", "\n".join([*lines, "", *notes]), keep=not quick)


def _contend(out: Path, layers: int, rank: int, quick: bool) -> tuple[dict[str, Child], str]:
    sizes, kinds = TOY if quick else LLAMA_8B, ("base", "extended", "derivative")
    base, extended, derivative = (make(out, layers, kind, sizes) for kind in kinds)
    adapter = out / f"{base.name}-adapter-{rank}"
    if not adapter.is_dir():
        run(
            [script("regraft"), "extract-lora", str(base), str(extended), "-o", str(adapter),
             "--rank", str(rank), "--quiet", "--no-verify"]
        )  # fmt: skip
    target, peft = out / "grafted", out / "grafted-peft"
    rows = {}
    for name, command in {
        "cp": ["cp", "-r", str(derivative), str(target)],
        "cp, then sync": ["sh", "-c", f"cp -r {derivative} {target} && sync {target}/*"],
        "regraft apply": [
            script("regraft"), "apply", str(adapter), str(derivative), "-o", str(target), "--quiet",
        ],
        "PEFT merge_and_unload": [
            sys.executable, "-c", PEFT_MERGE, str(derivative), str(adapter), str(peft),
        ],
    }.items():  # fmt: skip
        output = peft if "PEFT" in name else target

        def measure(command: list[str] = command, output: Path = output) -> Child:
            shutil.rmtree(output, ignore_errors=True)
            warm(derivative, adapter)
            return run(command)

        rows[name] = best(measure, 1 if quick or output is peft else 3)
    return rows, f"{layers} layers: {_difference(target, peft)}"


def _difference(ours: Path, theirs: Path) -> str:
    """A sentence on how many weights of two results differ."""
    differing = total = 0
    with Checkpoint.open(ours) as a, Checkpoint.open(theirs) as b:
        for name in a.tensors:
            x, y = a.tensor(name), b.tensor(name)
            differing += int((x != y).sum())
            total += x.numel()
    return f"{differing} of {total} weights of regraft's result differ from PEFT's."


if __name__ == "__main__":
    main()
