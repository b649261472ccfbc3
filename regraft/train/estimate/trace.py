"""`regraft plan --trace`: the bytes of a real training step, run by shape alone.

The step is that of a training: this package's attention and exchange, loss, LoRA, FSDP2,
recomputation, offload, clipping and optimizer. It runs on tensors without data (FakeTensorMode), in
a process group whose other members do not exist (torch's backend "fake"). Four, five and six
layers are traced. All layers but the first and the last are alike, so the peak of a phase, the
messages and the operators are linear in their number; `exact` says whether the trace of six layers
lies on the line through the other two.

Only live tensors are counted: no CUDA context, communication buffers or fragmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from regraft.data.batch import IGNORED
from regraft.errors import InputError
from regraft.input_files import JsonObject
from regraft.parallel.exchange.choose import GPU_CLUSTER, GPU_NODE
from regraft.parallel.kernels.choose import by_shape
from regraft.parallel.kernels.kernel import CpuFlash
from regraft.parallel.layout import multiple
from regraft.parallel.shards import Part, Shard
from regraft.rope import ContextSpec
from regraft.train.estimate.live_bytes import GATHERED, HOST, LiveBytes
from regraft.train.recipe.schema import Body, has_teacher
from regraft.train.recipe_mesh import make_mesh
from regraft.train.step import optimizers
from regraft.train.step.fsdp import wrap_layers
from regraft.train.step.learner import Learner, untrained_learner
from regraft.train.step.rotary import fix_rotary

_LAYERS = (4, 5, 6)  # the second layer is none of the last two, whose inputs never leave the device
_TOLERANCE = 1e-3  # relative distance of the last trace from the line through the others
_NODE = 8  # devices that NVLink connects
PARAMETERS, MOMENTS, KEPT, WORKING = "parameters", "moments", "kept for backward", "working set"
FORWARD, LAST, OTHERS, UPDATE = "forward", "backward of the last layer", "backward", "update"


@dataclass(frozen=True)
class Trace:
    """One step of one process on one batch. phases: for each phase of the step the peak bytes of
    live tensors, by class. host_bytes: peak in this process's host memory. sent: bytes that leave
    the process, by collective. exact: whether the peaks are linear in the number of layers."""

    phases: dict[str, dict[str, float]]
    host_bytes: float
    sent: dict[str, float]
    operators: float
    exact: bool = True

    @property
    def device_bytes(self) -> float:
        return sum(self.highest.values())

    @property
    def highest(self) -> dict[str, float]:
        """The bytes by class in the phase with the highest peak."""
        return max(self.phases.values(), key=lambda classes: sum(classes.values()))


def trace_stage(
    body: Body, config: Mapping[str, Any], length: int, rows: int, devices: int
) -> Trace:
    """A step on `rows` rows of `length` tokens on each of `devices` GPUs, of the model with this
    config.json. For body.dtype auto, bfloat16 is traced; for body.memory.keep_attention auto,
    False. Raises InputError for what cannot be traced."""
    if body.optimizer.name == "adamw8bit":
        raise InputError("A step with adamw8bit cannot be traced; say adamw.")
    if has_teacher(body):
        raise InputError("A recovery with a teacher cannot be traced.")
    layers = int(config["num_hidden_layers"])
    body = body.model_copy(update={"dtype": "bfloat16" if body.dtype == "auto" else body.dtype})
    counts = _LAYERS if layers > _LAYERS[-1] else (layers,)
    with _fake_processes(devices):
        traces = [_trace(body, _with_layers(config, count), length, rows) for count in counts]
    return traces[0] if len(traces) == 1 else extrapolate(traces, counts, layers)


def extrapolate(traces: Sequence[Trace], counts: Sequence[int], layers: int) -> Trace:
    """The step of a model with `layers` layers, on the line through the first two of three traces
    of models with `counts` layers. exact: whether the third lies on that line."""
    first, second, third = traces

    def line(at: int) -> Trace:
        steps = (at - counts[0]) / (counts[1] - counts[0])

        def value(a: float, b: float) -> float:
            return a + (b - a) * steps

        def each(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
            return {name: value(a.get(name, 0), b.get(name, 0)) for name in {**a, **b}}

        return Trace(
            {name: each(peak, second.phases[name]) for name, peak in first.phases.items()},
            value(first.host_bytes, second.host_bytes),
            each(first.sent, second.sent),
            value(first.operators, second.operators),
        )

    predicted = line(counts[2]).phases
    exact = all(
        abs(sum(predicted[name].values()) / sum(peak.values()) - 1) < _TOLERANCE
        for name, peak in third.phases.items()
    )
    return replace(line(layers), exact=exact)


def _with_layers(config: Mapping[str, Any], layers: int) -> JsonObject:
    result = {**config, "num_hidden_layers": layers}
    if isinstance(kinds := config.get("layer_types"), list):
        result["layer_types"] = kinds[:layers]
    return result


@contextmanager
def _fake_processes(devices: int) -> Iterator[None]:
    """A process group of `devices` ranks of which this process is the first; collectives do
    nothing."""
    if devices == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=devices, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _trace(body: Body, config: JsonObject, length: int, rows: int) -> Trace:
    mesh = make_mesh(body, "cpu")
    ranks = mesh.context * mesh.ulysses
    mesh = replace(mesh, machine=GPU_NODE if ranks <= _NODE else GPU_CLUSTER)
    learner = untrained_learner(body, config, "the model", mesh)
    step = multiple(mesh.context, mesh.ulysses)
    padded = -(-length // step) * step
    shard = Shard(mesh, padded, length, ((0, *((length,) if padded > length else ())),))
    counter = LiveBytes()
    with by_shape(CpuFlash()), FakeTensorMode(allow_non_fake_inputs=True):
        _allocate(learner)
        wrap_layers(learner, body, mesh)
        fix_rotary(learner.model, ContextSpec.from_config(config), length)
        if learner.store is not None:
            learner.store.copies = _CountedCopies(counter)  # type: ignore[assignment]
        for tensor in [*learner.parameters(), *learner.buffers()]:
            counter.add(tensor, PARAMETERS)
        ids = torch.zeros(rows, padded // ranks, dtype=torch.long)
        part = Part(
            input_ids=ids,
            position_ids=torch.zeros_like(ids),
            labels=torch.full_like(ids, IGNORED),
            context_parallel=shard,
        )
        _count_step(learner, body, part, counter)
    return Trace(
        {
            phase: {kind: float(size) for kind, size in peak.classes.items() if kind != HOST}
            for phase, peak in counter.peaks.items()
        },
        float(counter.host_peak),
        {name: float(size) for name, size in counter.sent.items() if size},
        float(counter.operators),
    )


def _allocate(learner: Learner) -> None:
    """Replace tensors on the meta device by fake ones of the CPU; tied ones stay tied."""
    made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in learner.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                if old not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    made[old] = torch.nn.Parameter(new, old.requires_grad)
                module.register_parameter(name, made[old])
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _count_step(learner: Learner, body: Body, part: Part, counter: LiveBytes) -> None:
    """Count one step of a training that has made steps before: the moments exist."""
    parameters = learner.trained()
    made = optimizers.make(parameters, body.optimizer)
    optimizers.set_rate(made, 1e-4)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    _update(made)
    moments = [
        value
        for optimizer in made
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    for tensor in moments:
        counter.add(tensor, MOMENTS)

    def note_input(_: Any, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: setattr(counter, "phase", OTHERS))

    learner.layers[-1].register_forward_pre_hook(note_input, with_kwargs=True)
    with counter, counter.resizes():
        _gather_once(learner, counter)
        counter.kind, counter.phase = WORKING, FORWARD
        nll = learner(part)
        counter.relabel(WORKING, KEPT)
        counter.phase = LAST
        nll.backward()
        counter.relabel(KEPT, WORKING)
        counter.phase = UPDATE
        if body.optimizer.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), body.optimizer.clip)
        _update(made)


def _gather_once(learner: Learner, counter: LiveBytes) -> None:
    """Have FSDP allocate its whole parameters, which it only resizes from then on."""
    from torch.distributed.fsdp import FSDPModule

    with counter.allocating(GATHERED):
        for module in learner.modules():
            if isinstance(module, FSDPModule):
                module.unshard()
                module.reshard()
    counter.sent.clear()
    counter.operators = 0


def _update(made: list[torch.optim.Optimizer]) -> None:
    for optimizer in made:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class _CountedCopies:
    """In place of `memory.CopyStream`: copies are plain, and host memory is counted."""

    def __init__(self, counter: LiveBytes) -> None:
        self._counter = counter

    @contextmanager
    def after_compute(self) -> Iterator[None]:
        yield

    def event(self) -> None:
        return None

    def wait(self, event: None) -> None:
        return None

    def host_memory(self, like: torch.Tensor) -> torch.Tensor:
        with self._counter.allocating(HOST):
            return torch.empty_like(like)
