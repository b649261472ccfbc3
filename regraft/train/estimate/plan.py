"""`regraft plan`: whether a recipe fits given devices, how long it takes, and what saves memory.

The dry run of `regraft train` prints the same estimate for the machine it runs on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from regraft import progress
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError
from regraft.input_files import JsonObject
from regraft.parallel import Mesh
from regraft.records import SCHEMA_VERSION
from regraft.train.estimate import budget, step_time
from regraft.train.estimate.budget import Shape, Switches
from regraft.train.estimate.machine import Machine, parse_machine, this_machine
from regraft.train.estimate.throughput import shape_of
from regraft.train.recipe.model import ToyModel
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.schema import Body, has_teacher, trains_everything
from regraft.train.recipe.stages import Stage
from regraft.train.step.learner import Learner, untrained_learner
from regraft.units import parse_bytes

_FILLED = 0.9  # share of the memory that `keep_attention: auto` fills by estimate


@dataclass(frozen=True)
class StageEstimate:
    """What a stage needs. window: tokens of a row; device_bytes: of each device; host_bytes: of all
    hosts; link_bytes_per_second: each way between devices that share a row; keep_attention: whether
    recomputed layers keep their attention."""

    length: int
    window: int
    device_bytes: float
    host_bytes: float
    fits: bool
    step_seconds: float
    seconds: float
    link_bytes_per_second: float
    keep_attention: bool = False


@dataclass(frozen=True)
class StageTrace:
    """The step of a stage, run by shape alone on one batch. device_bytes: peak of live tensors on
    each device; classes: its parts; formula_bytes: the formula's value for it. host_bytes: of all
    hosts. sent_bytes: by each device, by collective. exact: whether the traced peaks are linear in
    the number of layers."""

    device_bytes: float
    classes: dict[str, float]
    formula_bytes: float
    host_bytes: float
    sent_bytes: dict[str, float]
    operators: float
    exact: bool


@dataclass(frozen=True)
class PlannedMachine:
    """The devices that a plan is for. assumed_rate: FLOP/s of a device in matrix products, but for
    attention, whose are assumed_attention_rate; on a CPU in whole steps. assumed_bandwidth: bytes a
    second of a GPU's memory."""

    name: str
    devices: int
    usable_bytes: float
    usable_host_bytes: float
    assumed_rate: float
    assumed_attention_rate: float
    assumed_bandwidth: float | None


@dataclass(frozen=True)
class PlannedModel:
    """Numbers of all parameters and of the trained ones."""

    parameters: int
    trained: int


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What `regraft plan` prints. context_devices: devices that share a row. longest: tokens of the
    longest row that fits, by the ways to save memory that are switched on. traces: of the stages,
    where requested."""

    machine: PlannedMachine
    model: PlannedModel
    context_devices: int
    stages: list[StageEstimate]
    longest: dict[str, int]
    traces: list[StageTrace] | None = None
    kind: Literal["training plan"] = "training plan"
    schema_version: int = SCHEMA_VERSION


def plan_training(
    recipe: str | Path,
    *,
    gpus: str | None = None,
    host_memory: str | None = None,
    trace: bool = False,
) -> TrainingPlan:
    """Memory, time and links of every stage on the devices described, or on this machine.

    gpus: such as '8xH100-80'; default: this machine's GPUs, or its CPU. host_memory: of all nodes
    together, such as '1TB'. trace: also run the step of every stage by shape alone and count its
    bytes, which takes minutes. Reads only the model's config. Raises InputError for devices that
    are not known, and for a trace of a CPU's step.
    """
    read = Recipe.read(recipe)
    host = parse_bytes(host_memory, "--host-memory") if host_memory else None
    config = _config(read.body)
    name = read.body.model if isinstance(read.body.model, str) else "the toy"
    mesh = Mesh.create(1, 1, 1, 1, device="cpu")
    shape = shape_of(untrained_learner(read.body, config, name, mesh))
    machine = parse_machine(gpus, host) if gpus else this_machine(host, width=_width(shape))
    switches = switches_of(read.body, machine)
    context = _context(read, machine)
    if trace and machine.is_cpu:
        raise InputError("--trace counts the memory of GPUs: describe some, such as --gpus 8xH100.")
    stages = [
        estimate_stage(read, stage, shape, switches, machine, context) for stage in read.body.stages
    ]
    rates = (machine.rate, machine.attention_rate, machine.bandwidth)
    return TrainingPlan(
        machine=PlannedMachine(machine.name, machine.devices, machine.memory, machine.host, *rates),
        model=PlannedModel(shape.parameters, shape.trained),
        context_devices=context,
        stages=stages,
        longest={name: length for name, _, length in budget.alternatives(shape, switches, machine)},
        traces=_traces(read, config, stages, machine) if trace else None,
    )


def _traces(
    recipe: Recipe, config: JsonObject, stages: list[StageEstimate], machine: Machine
) -> list[StageTrace]:
    from regraft.train.estimate.trace import trace_stage

    traces = []
    with progress.bar("Tracing stages", len(stages), unit="stages") as bar:
        for stage, estimate in zip(recipe.body.stages, stages, strict=True):
            memory = recipe.body.memory
            kept = memory.model_copy(update={"keep_attention": estimate.keep_attention})
            body = recipe.body.model_copy(update={"memory": kept})
            rows = min(memory.rows, stage.batch)
            traced = trace_stage(body, config, estimate.window, rows, machine.devices)
            traces.append(
                StageTrace(
                    traced.device_bytes,
                    traced.highest,
                    estimate.device_bytes - machine.overhead,
                    traced.host_bytes * machine.devices,
                    traced.sent,
                    traced.operators,
                    traced.exact,
                )
            )
            bar.advance(1)
    return traces


def estimate_run(recipe: Recipe, learner: Learner, mesh: Mesh) -> list[StageEstimate]:
    """The estimates of a run's stages on the devices of `mesh`; none where their rate is
    unknown."""
    shape = shape_of(learner)
    try:
        machine = this_machine(None, mesh.device, _width(shape))
    except InputError:
        return []
    machine = replace(machine, devices=1 if machine.is_cpu else mesh.size)
    switches = switches_of(recipe.body, machine)
    context = mesh.context * mesh.ulysses
    return [
        estimate_stage(recipe, stage, shape, switches, machine, context)
        for stage in recipe.body.stages
    ]


def decide_keep_attention(recipe: Recipe, learner: Learner, mesh: Mesh) -> list[bool]:
    """For every stage whether recomputed layers keep their attention: what the recipe says, and for
    auto what the estimate says on GPUs. The same on all processes. Collective."""
    setting, stages = recipe.body.memory.keep_attention, recipe.body.stages
    if setting != "auto":
        return [setting] * len(stages)
    if mesh.device.type != "cuda":
        return [False] * len(stages)
    fits = [estimate.keep_attention for estimate in estimate_run(recipe, learner, mesh)]
    votes = mesh.sum_numbers(fits or [False] * len(stages))
    return [count == mesh.size for count in votes]


def switches_of(body: Body, machine: Machine) -> Switches:
    """The switches of a recipe. Trained weights and moments are float32 (8-bit moments a byte
    each); frozen weights and the teacher have the dtype of the arithmetic."""
    auto = "float32" if machine.is_cpu else "bfloat16"
    dtype = auto if body.dtype == "auto" else body.dtype
    element = {"float32": 4, "bfloat16": 2, "float64": 8}[dtype]
    moments = 2 if body.optimizer.name == "adamw8bit" else 8
    return Switches(
        checkpoint=body.memory.checkpoint,
        offload=body.memory.offload and not machine.is_cpu,
        keep_attention=body.memory.checkpoint and body.memory.keep_attention is True,
        tile=body.memory.tiled_mlp,
        trained_norms=trains_everything(body) or (body.lora is not None and body.lora.norms),
        fused_norms=body.memory.fused_norms,
        fused_rope=body.memory.fused_rope,
        fused_swiglu=body.memory.fused_swiglu,
        frozen_bytes=element,
        four_bit=body.load.bits == 4,
        trained_bytes=max(4, element) + moments,
        element=element,
        loss_chunk=body.memory.loss_chunk,
        teacher=has_teacher(body),
        distill=has_teacher(body) and body.recover.distill > 0,
        overhead=machine.overhead,
    )


def estimate_stage(
    recipe: Recipe, stage: Stage, shape: Shape, switches: Switches, machine: Machine, context: int
) -> StageEstimate:
    """Memory and time of a stage whose rows are shared by `context` devices."""
    window, rows = recipe.window(stage), min(recipe.body.memory.rows, stage.batch)
    copies = recipe.body.parallel.replicate
    mesh = (context, machine.devices, 1 if copies == "auto" else copies)
    switches = replace(switches, tile=switches.tile * rows)
    if recipe.body.memory.keep_attention == "auto" and switches.checkpoint and not machine.is_cpu:
        keeping = replace(switches, keep_attention=True)
        needed = budget.memory(shape, keeping, window * rows, *mesh)
        if needed[0] <= _FILLED * machine.memory and needed[1] <= _FILLED * machine.host:
            switches = keeping
    device, host = budget.memory(shape, switches, window * rows, *mesh)
    flops = step_time.step_flops(
        shape, window, full=trains_everything(recipe.body), checkpoint=switches.checkpoint,
        keep_attention=switches.keep_attention, distill=switches.distill,
    )  # fmt: skip
    traffic = step_time.step_traffic(shape, switches, window) * stage.batch
    passes = math.ceil(stage.batch * context / (rows * machine.devices))
    seconds = step_time.step_seconds(shape, machine, flops * stage.batch, traffic, passes)
    return StageEstimate(
        length=stage.length,
        window=window,
        device_bytes=device,
        host_bytes=host,
        fits=device <= machine.memory and host <= machine.host,
        step_seconds=seconds,
        seconds=seconds * recipe.steps(stage),
        link_bytes_per_second=step_time.link_needed(shape, machine, window, context),
        keep_attention=switches.keep_attention,
    )


def _config(body: Body) -> JsonObject:
    if isinstance(body.model, ToyModel):
        from regraft.train.toy_model import toy_config

        return toy_config(body.model.toy)
    with Checkpoint.open(body.model) as base:
        return dict(base.config)


def _width(shape: Shape) -> tuple[int, int]:
    return shape.hidden, shape.intermediate


def _context(recipe: Recipe, machine: Machine) -> int:
    """Devices that share a row."""
    parallel = recipe.body.parallel
    shared = [size for size in (parallel.context, parallel.ulysses) if size != "auto"]
    others = [size for size in (parallel.shard, parallel.replicate) if size != "auto"]
    product = 1
    for size in shared:
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
    for size in shared:
        share *= size
    return share
