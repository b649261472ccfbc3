"""`regraft plan`: does a recipe fit these devices, how long does it take, what would help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.checkpoint.source import Checkpoint
from regraft.errors import InputError
from regraft.train.estimate import budget
from regraft.train.estimate.budget import GIB, Machine, Shape, Switches
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.schema import Body, Stage, ToyModel
from regraft.units import format_bytes, format_tokens, parse_bytes


def plan(
    recipe: str | Path, *, gpus: str | None = None, host_memory: str | None = None
) -> dict[str, Any]:
    """Memory, time and links of every stage on the devices described, or on this machine's.

    gpus: such as '8xH100-80'. host_memory: of all nodes together, such as '1TB'. Reads only the
    model's headers. Raises InputError where there is no GPU and none is described.
    """
    read = Recipe.read(recipe)
    body = read.body
    if isinstance(body.model, ToyModel):
        raise InputError("A toy fits anywhere; `regraft train --dry-run` says what it will do.")
    machine = _machine(gpus, parse_bytes(host_memory) if host_memory else None)
    with Checkpoint.open(body.model) as base:
        shape = shape_of(body, base)
    switches = switches_of(body)
    context = _context(read, machine)
    stages = [_stage(read, stage, shape, switches, machine, context) for stage in body.stages]
    return {
        "schema_version": 1,
        "kind": "training plan",
        "machine": {
            "name": machine.name,
            "devices": machine.devices,
            "usable_bytes": machine.memory,
            "usable_host_bytes": machine.host,
            "assumed_rate": machine.rate,
        },
        "model": {"parameters": shape.parameters, "trained": shape.trained},
        "context_devices": context,
        "stages": stages,
        "longest": {
            name: length
            for name, _, length in budget.alternatives(shape, switches, machine)
        },
    }  # fmt: skip


def shape_of(body: Body, base: Checkpoint) -> Shape:
    """Sizes from a checkpoint's headers; a LoRA trains rank x (in + out) of each target matrix."""
    tensors = base.tensors.values()
    parameters = sum(_count(info.shape) for info in tensors)
    if body.method == "full":
        trained = sum(
            _count(info.shape)
            for info in tensors
            if not any(part in info.name for part in body.freeze)
        )
        return Shape.of(base.config, parameters, trained)
    words = body.lora.targets.replace(",", " ").split()
    names = {"all-linear": "_proj", "attention": "self_attn", "mlp": ".mlp."}
    trained = sum(
        body.lora.rank * sum(info.shape)
        for info in tensors
        if len(info.shape) == 2
        and "layers." in info.name
        and any(names.get(word, f".{word}.") in info.name for word in words)
    )
    return Shape.of(base.config, parameters + trained, trained)


def switches_of(body: Body) -> Switches:
    """Of a recipe: float32 weights, gradients and moments (8-bit ones are a byte each), and the
    bfloat16 copy that the arithmetic makes."""
    return Switches(
        checkpoint=body.memory.checkpoint,
        offload=body.memory.offload,
        tiled=body.memory.tiled_mlp > 0,
        trained_bytes=12 if body.optimizer.name == "adamw8bit" else 18,
    )


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What a person wants to see: (label, text)."""
    machine = result["machine"]
    found = [
        ("devices", f"{machine['name']}, {machine['usable_bytes'] / GIB:.0f} GiB usable each"),
        ("model", f"{result['model']['parameters'] / 1e9:.2f}B parameters, "
                  f"{result['model']['trained'] / 1e9:.3g}B trained"),
    ]  # fmt: skip
    for i, stage in enumerate(result["stages"], 1):
        fits = "fits" if stage["fits"] else "DOES NOT FIT"
        host = (
            f" and {format_bytes(stage['host_bytes'])} of host memory"
            if stage["host_bytes"]
            else ""
        )
        link = (
            f"; {stage['link_bytes_per_second'] / 1e9:.1f} GB/s between devices"
            if stage["link_bytes_per_second"]
            else ""
        )
        found.append(
            (
                f"stage {i}",
                f"{format_tokens(stage['length'])} over {result['context_devices']}: {fits}, "
                f"{stage['device_bytes'] / GIB:.0f} GiB each{host}; about "
                f"{_duration(stage['step_seconds'])} a step, {_duration(stage['seconds'])} in "
                f"all{link}",
            )
        )
    for name, length in result["longest"].items():
        found.append((f"longest, {name}", f"{length:,} tokens" if length else "does not fit"))
    return found


def _stage(
    recipe: Recipe, stage: Stage, shape: Shape, switches: Switches, machine: Machine, context: int
) -> dict[str, Any]:
    window = recipe.window(stage)
    rows = recipe.body.memory.rows
    device, host = budget.memory(shape, switches, window * rows, context, machine.devices)
    flops = budget.step_flops(
        shape, window, full=recipe.body.method == "full", checkpoint=switches.checkpoint
    )
    seconds = flops * stage.batch / (machine.rate * machine.devices)
    return {
        "length": stage.length,
        "window": window,
        "device_bytes": device,
        "host_bytes": host,
        "fits": device <= machine.memory and host <= machine.host,
        "step_seconds": seconds,
        "seconds": seconds * recipe.steps(stage),
        "link_bytes_per_second": budget.link_needed(shape, machine, window, context),
    }


def _context(recipe: Recipe, machine: Machine) -> int:
    """Devices that share a row."""
    parallel = recipe.body.parallel
    given = [size for size in (parallel.context, parallel.ulysses) if size != "auto"]
    others = [size for size in (parallel.shard, parallel.replicate) if size != "auto"]
    product = 1
    for size in given:
        product *= size
    for size in others if parallel.context == "auto" else ():
        product *= size
    if parallel.context != "auto":
        return product
    if machine.devices % product:
        raise InputError(
            f"parallel: {product} processes do not divide {machine.devices} devices; change one."
        )
    share = machine.devices // product
    for size in given:
        share *= size
    return share


def _machine(gpus: str | None, host: float | None) -> Machine:
    if gpus is not None:
        return budget.parse_machine(gpus, host)
    import torch

    if not torch.cuda.is_available():
        raise InputError("There is no GPU here; describe one, such as --gpus 8xH100-80.")
    import os

    found = torch.cuda.get_device_properties(0)
    known = next((name for name in budget.DEVICES if name in found.name.replace(" ", "")), None)
    if known is None:
        raise InputError(f"The rate of {found.name} is not known; say what it is like with --gpus.")
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = torch.cuda.device_count()
    gigabytes = round(found.total_memory / 1e9)
    return budget.parse_machine(f"{count}x{known}-{gigabytes}", host or here)


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
