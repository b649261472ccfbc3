"""The demo as one job: train, extract, apply, examine, write the page."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from regraft import progress
from regraft.write import copy_file, write_text

if TYPE_CHECKING:
    from regraft.demo.recipes import Plan
    from regraft.demo.result import DemoRecord
    from regraft.rope import ContextSpec

_THREADS = 2


def run_demo(
    out: str | Path, *, seed: int = 2, overwrite: bool = False, plan: Plan | None = None
) -> DemoRecord:
    """Run the demo into the folder `out`. Returns the result, which is also in `out`/result.json.

    `out` gets every checkpoint (float32, 1.2 MB each), the adapters, README.md and demo.png. Takes
    about three minutes of two cores. plan: other hyperparameters than the demo's. The same seed
    gives the same numbers on one machine and library version.

    Raises InputError if `out` is not empty and `overwrite` is not given.
    """
    if "torch" not in sys.modules:
        # Threads that spin while they wait slow a shared machine down up to ten times.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    began = time.perf_counter(), time.process_time()
    import torch

    from regraft.demo.recipes import Plan
    from regraft.demo.result import Seconds
    from regraft.job import Job

    plan = plan or Plan()
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, _THREADS))
    try:
        job = Job(out, overwrite=overwrite)
        with job.start({"demo": asdict(plan), "seed": seed}) as staging:
            with progress.hide_library_bars():
                result = _run(staging.folder, plan, seed)
            staging.publish()
    finally:
        torch.set_num_threads(threads)
    seconds = Seconds(
        wall=round(time.perf_counter() - began[0], 1), cpu=round(time.process_time() - began[1], 1)
    )
    return replace(result, seconds=seconds)


def _run(folder: Path, plan: Plan, seed: int) -> DemoRecord:
    from regraft.adapters.apply.apply import apply_lora
    from regraft.adapters.extract.extract import extract_lora
    from regraft.demo import recipes
    from regraft.demo.exam import examine
    from regraft.demo.page import write_page
    from regraft.demo.result import DemoRecord, Thetas
    from regraft.records import to_json, versions
    from regraft.rope import ContextSpec, scaling_law
    from regraft.train.job import train_model

    theta = float(round(scaling_law(plan.theta, plan.trained, plan.target)))
    recipe_of = {
        "base": recipes.base_recipe(plan, seed),
        "derivative": recipes.derivative_recipe(plan, seed, "base"),
        "extended": recipes.extended_recipe(plan, seed, "base", theta),
    }
    names = ("base", "derivative", "derivative, theta only", "extended")
    folders = {name: Path(name.replace(", ", "-").replace(" ", "-")) for name in names}
    errors, exams, base_steps = {}, {}, 0
    with contextlib.chdir(folder):  # recipes and records name the models by relative paths
        Path("recipes").mkdir()
        for name, recipe in recipe_of.items():
            progress.note(f"{name}: regraft train recipes/{name}.yaml -o {name}")
            path = recipes.write_recipe(Path("recipes") / f"{name}.yaml", recipe)
            with progress.hide_notes():
                training = train_model(path, folders[name], device="cpu")
            if name == "base":
                base_steps = training.steps
        context = ContextSpec.from_config(json.loads(Path("extended/config.json").read_text()))
        with_context(folders["derivative"], context, folders[names[2]])
        for rank in plan.ranks:
            adapter, name = Path(f"adapter-rank-{rank}"), f"graft, rank {rank}"
            progress.note(f"{name}: regraft extract-lora and apply")
            folders[name] = Path(f"graft-rank-{rank}")
            with progress.hide_notes():
                record = extract_lora("base", "extended", adapter, rank=rank)
                apply_lora(adapter, "derivative", folders[name])
            assert record.totals is not None
            errors[name] = record.totals.error
        with progress.bar("exam", total=len(folders), unit="models") as bar:
            for name, model in folders.items():
                exams[name] = examine(model, plan, seed)
                bar.advance(1, name)
    result = DemoRecord(
        seed=seed,
        hyperparameters=plan,
        theta=Thetas(trained=plan.theta, target=theta),
        base_steps=base_steps,
        parameters=_parameters(folder / "base"),
        adapter_error=errors,
        models=exams,
        versions=versions(),
    )
    write_page(folder, result)
    write_text(folder / "result.json", json.dumps(to_json(result), indent=1) + "\n")
    return result


def with_context(model: Path, context: ContextSpec, out: Path) -> None:
    """Write a copy of a model with another RoPE and length and the same weights."""
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
