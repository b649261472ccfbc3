"""regraft merge against mergekit-yaml: one decoder layer of Llama-3-8B and embeddings, bfloat16.

    python benchmarks/merge.py [--layers 1] [-o bench-out] [--methods ties,linear] [--repeat 3]

Three models (TIES, DARE-TIES: two on a base; linear: three; SLERP: two). Each contender runs in a
process of its own on the same files from a warm page cache; wall, CPU and peak memory are those of
the process with its imports, the best of --repeat runs. Most of a one-layer run is imports, so a
larger run gives the cost of a further layer, which is what an 8B model is made of. mergekit runs as
it is installed, without card and tokenizer copy. Errors are taken against the method in float64 on
the k and v projections, relative to the merged change; entries where two magnitudes tie at the trim
threshold or the votes cancel exactly have no right answer and are left out. A draw has no
reference, so DARE has none.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from harness import Child, add_quick, environment, record, run, script, warm
from llama8b import LLAMA_8B, TOY, make

from regraft.checkpoint.read.source import Checkpoint

TENSORS = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "kv"]
WEIGHTS, DENSITY, T = (0.6, 0.4), 0.5, 0.35
OURS = (
    "import sys; from regraft import merge_models; "
    "merge_models(sys.argv[1], sys.argv[2], overwrite=True)"
)


def recipes(base: Path, first: Path, second: Path) -> dict[str, dict[str, Any]]:
    """Method -> recipe for both."""
    inputs = [
        {"model": str(path), "parameters": {"weight": weight, "density": DENSITY}}
        for path, weight in zip((first, second), WEIGHTS, strict=True)
    ]
    three = [
        {"model": str(path), "parameters": {"weight": weight}}
        for path, weight in zip((base, first, second), (0.2, 0.5, 0.3), strict=True)
    ]
    two = [{"model": str(base)}, {"model": str(first)}]
    return {
        "ties": {"merge_method": "ties", "base_model": str(base), "models": inputs},
        "dare_ties": {"merge_method": "dare_ties", "base_model": str(base), "models": inputs},
        "linear": {"merge_method": "linear", "models": three},
        "slerp": {
            "merge_method": "slerp", "base_model": str(base), "models": two,
            "parameters": {"t": T},
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--more", type=int, default=2, help="layers added in the second run")
    parser.add_argument("--methods", default="ties,dare_ties,linear,slerp")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--skip-mergekit", action="store_true")
    add_quick(parser)
    arguments = parser.parse_args()
    out, sizes = arguments.out.resolve(), TOY if arguments.quick else LLAMA_8B
    models = [
        make(out, arguments.layers, kind, sizes) for kind in ("base", "extended", "derivative")
    ]
    recipe_of = recipes(*models)
    layers = arguments.layers + arguments.more
    more = [make(out, layers, kind, sizes) for kind in ("base", "extended", "derivative")]
    large = recipes(*more)
    lines = [
        f"# Merging three models, {arguments.layers} layer(s) of Llama-3-8B's shapes, bfloat16",
        "",
        environment("transformers", *(() if arguments.skip_mergekit else ("mergekit",))),
        "",
        "| method | | wall s | s a further layer | CPU s | peak memory | error "
        "| times faster | a further layer | of the memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in arguments.methods.split(","):
        recipe = recipe_of[method]
        contenders: list[tuple[str, Child, float, float | None]] = []
        for name in ("regraft",) if arguments.skip_mergekit else ("mergekit", "regraft"):
            target = out / f"merge-{method}-{name}"
            warm(*models)
            child = _best(name, recipe, target, arguments.repeat)
            error = _error(method, models, target)
            shutil.rmtree(target)
            warm(*more)
            larger = _best(name, large[method], target, arguments.repeat)
            shutil.rmtree(target)
            further = (larger.wall - child.wall) / arguments.more
            contenders.append((name, child, further, error))
        peer, peer_further = contenders[0][1:3]
        for name, child, further, error in contenders:
            error_text = "n/a" if error is None else f"{error:.2e}"
            ratios = (
                f"| {peer.wall / child.wall:.1f} | {peer_further / further:.1f} "
                f"| {child.peak / peer.peak:.2f} |"
            )
            lines.append(
                f"| {method} | {name} | {child.wall:.1f} | {further:.1f} | {child.cpu:.1f} | "
                f"{child.peak / 1e9:.2f} GB | {error_text} {ratios}"
            )
            print(lines[-1], file=sys.stderr)
    record("merge", "\n".join(lines), keep=not arguments.quick)


def _best(name: str, recipe: dict[str, Any], out: Path, repeat: int) -> Child:
    return min((_merge(name, recipe, out) for _ in range(repeat)), key=lambda child: child.wall)


def _merge(name: str, recipe: dict[str, Any], out: Path) -> Child:
    path = out.with_suffix(".yaml")
    ours = {**recipe, "context": {"from": recipe.get("base_model") or _first(recipe)}}
    path.write_text(yaml.safe_dump(ours if name == "regraft" else recipe, sort_keys=False))
    shutil.rmtree(out, ignore_errors=True)
    if name == "regraft":
        return run([sys.executable, "-c", OURS, str(path), str(out)])
    command = [script("mergekit-yaml"), str(path), str(out)]
    return run(
        [*command, "--no-write-model-card", "--no-copy-tokenizer", "--quiet"], HF_HUB_OFFLINE="1"
    )


def _first(recipe: dict[str, Any]) -> str:
    return str(recipe["models"][0]["model"])


def _error(method: str, models: list[Path], out: Path) -> float | None:
    """||result - method in float64|| / ||merged change|| over TENSORS, before any rounding."""
    references: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
        "ties": _ties, "linear": _linear, "slerp": _slerp,
    }  # fmt: skip
    if method not in references:
        return None
    off = change = 0.0
    for tensor in TENSORS:
        stored = []
        for path in (*models, out):
            with Checkpoint.open(path) as checkpoint:
                stored.append(checkpoint.tensor(tensor).double())
        base, first, second, result = stored
        exact, decided = references[method](base, first, second)
        off += float((result - exact)[decided].square().sum())
        change += float((exact - base)[decided].square().sum())
    return float((off / change) ** 0.5)


def _linear(
    base: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    exact = 0.2 * base + 0.5 * first + 0.3 * second
    return exact, torch.ones_like(exact, dtype=torch.bool)


def _slerp(
    base: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    cosine = (base / base.norm() * (first / first.norm())).sum()
    angle = torch.arccos(cosine)
    parts = torch.sin((1 - T) * angle) * base + torch.sin(T * angle) * first
    exact = parts / torch.sin(angle) if abs(cosine) <= 0.9995 else torch.lerp(base, first, T)
    return exact, torch.ones_like(exact, dtype=torch.bool)


def _ties(
    base: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    decided = torch.ones_like(base, dtype=torch.bool)
    deltas = []
    for model in (first, second):
        delta = model - base
        count = int(DENSITY * delta.numel())
        threshold = delta.abs().flatten().kthvalue(delta.numel() - count + 1).values
        decided &= (delta.abs() - threshold).abs() > 1e-12
        deltas.append(torch.where(delta.abs() >= threshold, delta, 0))
    weighted = torch.stack([d * w for d, w in zip(deltas, WEIGHTS, strict=True)])
    votes = weighted.sum(0)
    decided &= (votes.abs() > 1e-12) | (weighted.abs().sum(0) == 0)
    agree = (weighted != 0) & ((weighted > 0) == (votes > 0))
    shares = (agree * torch.tensor(WEIGHTS, dtype=torch.float64)[:, None, None]).sum(0)
    total = (weighted * agree).sum(0)
    return base + torch.where(shares > 0, total / shares.clamp_min(1e-30), 0), decided


if __name__ == "__main__":
    main()
