"""What a training says before its first step where memory will not suffice, or GPUs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from regraft.parallel import Mesh
from regraft.train.estimate import budget
from regraft.train.estimate.machine import this_machine
from regraft.train.estimate.plan import StageEstimate, switches_of
from regraft.train.estimate.throughput import shape_of
from regraft.train.recipe.recipe import Recipe
from regraft.train.step.learner import Learner
from regraft.units import format_bytes


def memory_shortages(
    recipe: Recipe, learner: Learner, mesh: Mesh, estimates: Sequence[StageEstimate]
) -> list[str]:
    """A sentence for each stage that needs more memory than there is: how much, and which switches
    would help. estimates: of `estimate_run` for the same run."""
    if all(estimate.fits for estimate in estimates):
        return []
    shape, body = shape_of(learner), recipe.body
    machine = this_machine(None, mesh.device)
    machine = replace(machine, devices=1 if machine.is_cpu else mesh.size)
    options = budget.alternatives(shape, switches_of(body, machine), machine)[1:]
    lines = []
    for i, (stage, estimate) in enumerate(zip(body.stages, estimates, strict=True), 1):
        if estimate.fits:
            continue
        rows = min(body.memory.rows, stage.batch)
        helps: list[str] = []
        for name, switches, _ in options:
            switches = replace(switches, tile=switches.tile * rows)
            device, on_host = budget.memory(
                shape, switches, estimate.window * rows,
                mesh.context * mesh.ulysses, machine.devices, mesh.replicate,
            )  # fmt: skip
            fits = device <= machine.memory and on_host <= machine.host
            if fits and not any(_names(other) <= _names(name) for other in helps):
                helps.append(name)
        advice = (
            f"it would fit with memory: {' or '.join(helps)}"
            if helps
            else "no memory saver is enough: take more devices or shorter rows"
        )
        host = (
            f" and {format_bytes(estimate.host_bytes)} on the host" if estimate.host_bytes else ""
        )
        free = f"{format_bytes(machine.memory)} (host: {format_bytes(machine.host)})"
        lines.append(
            f"Stage {i} needs about {format_bytes(estimate.device_bytes)} of a device's memory"
            f"{host}, and {free} can be used here; {advice}. See regraft plan."
        )
    return lines


def _names(option: str) -> set[str]:
    """The switches of `offload and tiled_mlp`."""
    return set(option.replace(" and ", ", ").split(", "))


def different_gpus(mesh: Mesh) -> str | None:
    """A sentence where the processes' GPUs are not all alike: every step waits for the slowest, and
    the smallest memory limits all. Collective."""
    if mesh.device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(mesh.device)
    own = f"{properties.name} with {format_bytes(properties.total_memory)}"
    every: list[str] = [own]
    if mesh.size > 1:
        every = [""] * mesh.size
        dist.all_gather_object(every, own, group=mesh.groups["all"])
    kinds = {name: every.count(name) for name in sorted(set(every))}
    if len(kinds) == 1:
        return None
    text = ", ".join(f"{count} x {name}" for name, count in kinds.items())
    return (
        f"The GPUs differ ({text}): every step waits for the slowest, and the one with the least "
        "memory limits all. Choose alike ones by CUDA_VISIBLE_DEVICES."
    )
