"""`regraft demo`: train, extract, apply and evaluate with models small enough for two cores.

A base learns retrieval in rows of 64 words. An extended copy learns it in 1024. A derivative of
the base learns a skill of its own, `shout`. Then `extract_lora(base, extended)` and
`apply_lora(adapter, derivative)` run on these folders, and every folder is read back and scored:
does the derivative have the long context, and does it still have its skill?

All models are trained by `regraft train` from a seed; none is stored. `lessons` has the recipes,
`exam` the scores, `page` the table and the figure.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import progress
from regraft.write import copy_file, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from regraft.demo.lessons import Plan
    from regraft.rope import ContextSpec

_THREADS = 2


def run_demo(
    out: str | Path, *, seed: int = 2, overwrite: bool = False, plan: Plan | None = None
) -> dict[str, Any]:
    """Run the demo into the folder `out`; returns the result, which is `out`/result.json.

    `out` gets every checkpoint (float32, 1.2 MB each), the adapters, README.md and demo.png. Takes
    about three minutes of two cores. `plan` has other hyperparameters than the demo's.
    The same seed gives the same numbers on one machine and library version; the times taken are in
    the result under 'seconds', and not in the file.

    Raises InputError if `out` is not empty and `overwrite` is not given.
    """
    if "torch" not in sys.modules:
        # Threads that spin while they wait slow a shared machine down up to ten times.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    began = time.perf_counter(), time.process_time()
    import torch

    from regraft.demo.lessons import Plan
    from regraft.job import Job

    plan = plan or Plan()
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, _THREADS))
    try:
        job = Job(out, overwrite=overwrite)
        with job.start({"demo": asdict(plan), "seed": seed}) as staging:
            with progress.without_others():
                result = _run(staging.folder, plan, seed)
            staging.publish()
    finally:
        torch.set_num_threads(threads)
    result["seconds"] = {
        "wall": round(time.perf_counter() - began[0], 1),
        "cpu": round(time.process_time() - began[1], 1),
    }
    return result


def render(result: dict[str, Any]) -> Table:
    """The result as a rich table."""
    from regraft.demo.page import render

    return render(result)


def _run(folder: Path, plan: Plan, seed: int) -> dict[str, Any]:
    from regraft.adapters.apply.apply import apply_lora
    from regraft.adapters.extract.extract import extract_lora
    from regraft.demo import lessons
    from regraft.demo.exam import examine
    from regraft.demo.page import write_page
    from regraft.records import versions
    from regraft.rope import ContextSpec, scaling_law
    from regraft.train.job import train_model

    theta = float(round(scaling_law(plan.theta, plan.trained, plan.target)))
    recipes = {
        "base": lessons.base(plan, seed),
        "derivative": lessons.derivative(plan, seed, "base"),
        "extended": lessons.extended(plan, seed, "base", theta),
    }
    names = ("base", "derivative", "derivative, theta only", "extended")
    folders = {name: Path(name.replace(", ", "-").replace(" ", "-")) for name in names}
    errors, exams, base_steps = {}, {}, 0
    with contextlib.chdir(folder):  # so that recipes and records say base, not where it lay
        Path("recipes").mkdir()
        for name, recipe in recipes.items():
            progress.note(f"{name}: regraft train recipes/{name}.yaml -o {name}")
            path = lessons.write(Path("recipes") / f"{name}.yaml", recipe)
            with progress.hushed():
                training = train_model(path, folders[name], device="cpu")
            if name == "base":
                base_steps = training.steps
        context = ContextSpec.from_config(json.loads(Path("extended/config.json").read_text()))
        with_context(folders["derivative"], context, folders[names[2]])
        for rank in plan.ranks:
            adapter, name = Path(f"adapter-rank-{rank}"), f"graft, rank {rank}"
            progress.note(f"{name}: regraft extract-lora and apply")
            folders[name] = Path(f"graft-rank-{rank}")
            with progress.hushed():
                record = extract_lora("base", "extended", adapter, rank=rank)
                apply_lora(adapter, "derivative", folders[name])
            assert record.totals is not None
            errors[name] = record.totals.error
        with progress.bar("exam", total=len(folders), unit="models") as bar:
            for name, place in folders.items():
                exams[name] = {"folder": place.name, **examine(place, plan, seed)}
                bar.advance(1, name)
    result = {
        "schema_version": 1,
        "kind": "demo",
        "seed": seed,
        "hyperparameters": asdict(plan),
        "theta": {"trained": plan.theta, "target": theta},
        "base_steps": base_steps,
        "parameters": _parameters(folder / "base"),
        "adapter_error": errors,
        "models": exams,
        "versions": versions(),
    }
    write_page(folder, result)
    write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def with_context(model: Path, context: ContextSpec, out: Path) -> None:
    """The control: a copy of a model's folder with another RoPE and length, the weights as they
    were."""
    out.mkdir(parents=True)
    for path in model.iterdir():
        if path.suffix == ".safetensors" or path.name.startswith("tokenizer"):
            copy_file(path, out / path.name)
    config = json.loads((model / "config.json").read_text())
    text = json.dumps(context.write_into(config), indent=1)
    write_text(out / "config.json", text)


def _parameters(folder: Path) -> int:
    from regraft.checkpoint.read.source import Checkpoint

    with Checkpoint.open(folder) as checkpoint:
        return sum(math.prod(info.shape) for info in checkpoint.tensors.values())
