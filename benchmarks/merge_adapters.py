"""Two rank-64 adapters merged to an adapter: densely and cut again, or in their core space.

    python benchmarks/merge_adapters.py [--rank 64] [-o bench-out] [--modules k_proj,v_proj]

Layers of Llama-3.2-1B's shapes; by default the adapters change k and v, 512 x 2048, because dense
TSV-Merge and Iso-C take minutes for an MLP's matrix. Each merge runs in a process of its own on
files in the page cache; wall and peak memory are those of the process with its imports. CPU seconds
of a further layer come from the difference to a larger run. "error" is what the record states: of
the truncation to the summed rank and of the factors' dtype, relative to the method's own result.
"from the dense result" is the distance from the dense merge in float64, before it is cut, over the
k and v projections; the adapters are random, so TIES' distance says only that it is another method.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from harness import Child, add_quick, environment, record, run, script, warm
from llama8b import TOY, Sizes, make
from safetensors.torch import save_file

from regraft.adapters.folder import CONFIG, RECORD, WEIGHTS
from regraft.adapters.reader import Adapter
from regraft.merge.methods import merge_tensors
from regraft.records import AdapterRecord, read_record

LLAMA_1B = Sizes(hidden=2048, kv=512, intermediate=8192, head=64)
MODULES = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "kv"]
MORE = {"dense": 2, "core": 4}  # layers of the larger run
NOISE = 1.0  # CPU seconds by which two runs of one command differ on a busy machine
PARAMETERS: dict[str, dict[str, Any]] = {
    "ties": {"weight": 0.5, "density": 0.5},
    "tsv_merge": {"weight": 0.5},
    "iso_c": {"weight": 0.5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--methods", default=",".join(PARAMETERS))
    parser.add_argument("--modules", default="k_proj,v_proj")
    add_quick(parser)
    arguments = parser.parse_args()
    quick = arguments.quick
    rank = 4 if quick else arguments.rank
    out = arguments.out.resolve() / ("core-toy" if quick else "core-1b")
    sizes = TOY if quick else LLAMA_1B
    made = {
        layers: _adapters(out, layers, rank, sizes, arguments.modules.split(","))
        for layers in {1, *(1 + n for n in MORE.values())}
    }
    lines = [
        f"# Two adapters of rank {rank} on {arguments.modules} merged to one, layers of "
        "Llama-3.2-1B's shapes, float32",
        "",
        f"{environment('peft')}, {torch.get_num_threads()} thread(s)",
        "",
        "| method | space | wall s | CPU s a further layer | peak memory | error "
        "| from the dense result | a further layer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in arguments.methods.split(","):
        further = {}
        for space in ("dense", "core"):
            target = out / f"{method}-{space}"
            more = _merge(method, space, *made[1 + MORE[space]], target)
            one = _merge(method, space, *made[1], target)
            further[space] = (more.cpu - one.cpu) / MORE[space]
            least = NOISE / MORE[space]
            known = further[space] > least
            faster = further["dense"] / max(further[space], least)
            error = read_record(target / RECORD, AdapterRecord, "").totals
            assert error is not None
            away = _distance(method, made[1][1], target)
            lines.append(
                f"| {method} | {space} | {one.wall:.1f} "
                f"| {further[space] if known else least:.2f}{'' if known else ' or less'} "
                f"| {one.peak / 1e9:.2f} GB | {error.error:.1e} "
                f"| {away:.1e} | {faster:.0f}x{'' if known else ' or more'} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    record("merge_adapters", "\n".join(lines), keep=not quick)


def _adapters(
    out: Path, layers: int, rank: int, sizes: Sizes, modules: list[str]
) -> tuple[Path, list[Path]]:
    """The base, and two adapters on it of random directions, with singular values i^-0.7."""
    base, adapters = make(out, layers, "base", sizes), []
    for seed in (1, 2):
        adapter = out / f"adapter-{layers}-{seed}"
        adapter.mkdir(exist_ok=True)
        generator = torch.Generator().manual_seed(seed)
        values = 0.3 * torch.arange(1, rank + 1) ** -0.7
        tensors = {}
        for layer in range(layers):
            for name, (m, n) in sizes.projections.items():
                if not name.endswith(tuple(modules)):
                    continue
                key = f"base_model.model.model.layers.{layer}.{name}"
                b = torch.randn(m, rank, generator=generator) / m**0.5
                tensors[f"{key}.lora_B.weight"] = b * values
                tensors[f"{key}.lora_A.weight"] = torch.randn(rank, n, generator=generator) / n**0.5
        save_file(tensors, adapter / WEIGHTS, {"format": "pt"})
        config = {
            "peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules,
            "base_model_name_or_path": str(base),
        }  # fmt: skip
        (adapter / CONFIG).write_text(json.dumps(config))
        adapters.append(adapter)
    return base, adapters


def _merge(method: str, space: str, base: Path, adapters: list[Path], out: Path) -> Child:
    recipe = {
        "merge_method": method, "base_model": str(base), "space": space,
        "models": [{"model": str(adapter)} for adapter in adapters],
        "parameters": PARAMETERS[method], "context": {"from": str(base)},
    }  # fmt: skip
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    shutil.rmtree(out, ignore_errors=True)
    warm(base, *adapters)
    command = [script("regraft"), "merge", str(path), "-o", str(out), "--as-adapter", "--quiet"]
    return run(command)


def _distance(method: str, adapters: list[Path], out: Path) -> float:
    """||result - dense|| / ||dense|| in float64, over MODULES."""
    inputs, result = [Adapter.open(path) for path in adapters], Adapter.open(out)
    off = size = 0.0
    for module in MODULES:
        changes = [b.double() @ a.double() for b, a in (one.factors(module) for one in inputs)]
        dense = merge_tensors(
            method, changes, torch.zeros_like(changes[0]), PARAMETERS[method], dtype=torch.float64
        )
        b, a = result.factors(module)
        off += float((b.double() @ a.double() - dense).square().sum())
        size += float(dense.square().sum())
    return float((off / size) ** 0.5)


if __name__ == "__main__":
    main()
