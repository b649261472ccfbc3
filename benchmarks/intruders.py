"""Are grafts better without their intruder directions? On the models of `regraft demo`.

    python benchmarks/intruders.py [--demo demo-out] [-o intruders-out]

Runs the demo first where its folder does not exist. The extension is trained as a LoRA, too, since
LoRA makes intruder directions (arXiv 2410.21228). Every adapter is applied to the fine-tune; then
each intruder of a weight is damped in two ways: its singular value is scaled by a factor, which is
the paper's intervention, or the change along it is. As a control the whole change is scaled, as by
`regraft apply --scale`. An intruder is one of the 10 leading singular
vectors whose |cosine| with all left singular vectors of the weight before is below 0.5.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_models import Answers, Exam, examine, extended_recipe, write_recipe
from harness import add_quick, environment, record
from safetensors.torch import load_file, save_file
from torch import Tensor

import regraft
from regraft import progress
from regraft.checkpoint.hf.roles import checkpoint_roles
from regraft.checkpoint.read.source import Checkpoint
from regraft.lowrank.intruders import DIRECTIONS, THRESHOLD

LORAS = {"LoRA, rank 4": (4, 0.02), "LoRA, rank 16": (16, 0.005)}  # rank and rate of a training
DAMPED_PARTS = ("value", "change", "all")
FILE = "model.safetensors"


@dataclass
class Options:
    demo: Path
    out: Path
    factors: list[float]
    seed: int
    quick: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"))
    parser.add_argument("-o", "--out", type=Path, default=Path("intruders-out"))
    parser.add_argument("--factors", type=float, nargs="+", default=[0.9, 0.75, 0.5])
    parser.add_argument("--seed", type=int, default=2)
    add_quick(parser)
    options = Options(**vars(parser.parse_args()))
    if not options.demo.exists():
        if options.quick:
            raise SystemExit(f"{options.demo} does not exist: run `regraft demo` first")
        regraft.run_demo(options.demo)
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    with progress.hide_notes():
        page(options, list(compare(options)))


def compare(options: Options) -> Iterator[list[str]]:
    """The rows of the table."""
    trained, exam = options.demo / "trained", Exam()
    exam = exam.quick() if options.quick else exam
    target = trained / "shouter"
    yield line("*derivative*", "", None, examine(target, exam))
    for name, adapter in adapters(options).items():
        graft = options.out / f"graft-{adapter.name}"
        regraft.apply_lora(adapter, target, graft)
        intruders = damp(target, graft, options.out / "damped", "value", 1.0)
        yield line(name, "plain", intruders, examine(graft, exam))
        if not intruders and not (options.quick and name in LORAS):
            continue
        for part in DAMPED_PARTS:
            for factor in options.factors[: 1 if options.quick else None]:
                damp(target, graft, options.out / "damped", part, factor)
                yield line(
                    "", f"{part} x {factor:g}", intruders, examine(options.out / "damped", exam)
                )


def adapters(options: Options) -> dict[str, Path]:
    """The extension as an extracted adapter and as trained ones."""
    base = options.demo / "trained/base"
    result = {"extracted, rank 16": options.out / "extracted"}
    regraft.extract_lora(
        base, options.demo / "trained/extended", options.out / "extracted", rank=16, verify=False
    )
    for name, (rank, rate) in list(LORAS.items())[: 1 if options.quick else None]:
        result[name] = options.out / f"lora-{rank}"
        recipe = extended_recipe(options.seed, base) | {"method": "lora", "lora": {"rank": rank}}
        recipe.pop("freeze")
        for stage in recipe["stages"]:
            stage["rate"] = rate
            if options.quick:
                stage |= {"steps": 1, "batch": 1, "schedule": {"kind": "constant"}}
        path = write_recipe(options.out / f"lora-{rank}.yaml", recipe)
        regraft.train_model(path, result[name])
    return result


def damp(target: Path, graft: Path, out: Path, part: str, factor: float) -> int:
    """Write the graft with damped intruders. Returns how many it had."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(graft, out)
    tensors, count = load_file(graft / FILE), 0
    with Checkpoint.open(target) as before:
        for name, role in checkpoint_roles(before).items():
            if role.kind == "projection":
                old, new = before.tensor(name).double(), tensors[name].double()
                damped, intruders = without_intruders(old, new, part, factor)
                tensors[name] = damped.to(tensors[name].dtype).contiguous()
                count += intruders
    save_file(tensors, out / FILE, {"format": "pt"})
    return count


def without_intruders(
    before: Tensor, after: Tensor, part: str, factor: float
) -> tuple[Tensor, int]:
    """(`after` (m, n) with damped intruders, their number)."""
    u, values, vt = torch.linalg.svd(after, full_matrices=False)
    own = torch.linalg.svd(before, full_matrices=False).U
    cosines = (own.T @ u[:, :DIRECTIONS]).abs().amax(0)
    at = (cosines < THRESHOLD).nonzero().flatten()
    u, values, vt = u[:, at], values[at], vt[at]
    change = after - before
    parts = {"value": (u * values) @ vt, "change": u @ (u.T @ change), "all": change}
    return after + (factor - 1) * parts[part], len(at)


def line(name: str, how: str, intruders: int | None, answers: Answers) -> list[str]:
    nll = list(answers.prose_nll.values())
    return [
        name, how, "" if intruders is None else str(intruders),
        *(f"{share:.0%}" for share in answers.needle.values()),
        f"{next(iter(answers.shout.values())):.0%}", f"{nll[0]:.3f}", f"{nll[-1]:.3f}",
    ]  # fmt: skip


def page(options: Options, rows: list[list[str]]) -> None:
    exam = Exam()
    exam = exam.quick() if options.quick else exam
    lengths = exam.lengths
    heads = [
        "adapter", "damped", "intruders", *(f"needles at {length}" for length in lengths),
        f"skill at {lengths[0]}", f"NLL to {lengths[0]}", f"NLL {lengths[-2]}-{lengths[-1]}",
    ]  # fmt: skip
    table = "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])
    text = f"""# Grafts with damped intruder directions, on the demo's models

    python benchmarks/intruders.py

{environment("transformers")}

{table}

{exam.questions} questions a length. Of each of the 14 projections the {DIRECTIONS} leading singular
vectors are looked at. value x 0.75: an intruder's singular value is scaled by 0.75, the paper's
intervention; change x 0.75: the part of the change in its direction; all x 0.75: the whole change,
as a control. NLL: of prose by position.
"""
    record("intruders", text, keep=not options.quick)


if __name__ == "__main__":
    main()
