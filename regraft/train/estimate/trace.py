"""`regraft plan --trace`: the real training step of one process, run by shape alone and counted.

The step is that of a training: this package's attention and exchange, loss, LoRA, FSDP2,
recomputation, offload, clipping and optimizer, in a group of processes that is only imagined
(torch's backend "fake"), on tensors without numbers (FakeTensorMode). Three, four and five layers
are traced: all but the first and the last are alike, so that peaks of a phase, messages and
operators are straight lines in their number. What five layers take must lie on the line through
three and four; `exact` says so.

Counted are live tensors only: no CUDA context, no communication buffers, no fragmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from regraft.data.batch import IGNORED
from regraft.errors import InputError
from regraft.parallel.exchange.choose import GPU_CLUSTER, GPU_NODE
from regraft.parallel.kernels.choose import choose
from regraft.parallel.layout import multiple
from regraft.parallel.shards import KEY, Shard
from regraft.rope import ContextSpec
from regraft.train.estimate.live_bytes import HOST, LiveBytes
from regraft.train.recipe.schema import Body, has_teacher
from regraft.train.recipe_mesh import make_mesh
from regraft.train.step import optimizers
from regraft.train.step.fsdp import wrap_layers
from regraft.train.step.learner import Learner, untrained_learner
from regraft.train.step.rotary import fix_rotary, head_size

_LAYERS = (3, 4, 5)
_APART = 1e-3  # of the bytes of five layers, that they may lie off the line
_NODE = 8  # devices that NVLink joins
PARAMETERS, MOMENTS, KEPT, WORKING = "parameters", "moments", "kept for backward", "working set"
FORWARD, LAST, OTHERS, UPDATE = "forward", "backward of the last layer", "backward", "update"


@dataclass(frozen=True)
class Trace:
    """A step of one process on one batch. phases: for each phase of the step the most bytes of live
    tensors, by class. host_bytes: that wait in this process's host memory. sent: bytes that leave
    the process, by collective. exact: whether layers were alike."""

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
        """By class, in the phase that needs most."""
        return max(self.phases.values(), key=lambda of: sum(of.values()))


def trace_stage(
    body: Body, config: Mapping[str, Any], length: int, rows: int, devices: int
) -> Trace:
    """A step on `rows` rows of `length` tokens on each of `devices` GPUs, of the model with this
    config.json. body.dtype and body.memory.keep_attention are what is used: auto means bfloat16
    and False. Raises InputError for what cannot be traced."""
    if body.optimizer.name == "adamw8bit":
        raise InputError("A step with adamw8bit cannot be traced; say adamw.")
    if has_teacher(body):
        raise InputError("A recovery with a teacher cannot be traced.")
    layers = int(config["num_hidden_layers"])
    body = body.model_copy(update={"dtype": "bfloat16" if body.dtype == "auto" else body.dtype})
    counts = _LAYERS if layers > _LAYERS[-1] else (layers,)
    with _imagined(devices):
        traces = [_trace(body, _with_layers(config, count), length, rows) for count in counts]
    return traces[0] if len(traces) == 1 else _continued(traces, layers)


def _continued(made: list[Trace], layers: int) -> Trace:
    """The straight line through the first two of three traces, at so many layers; the third has to
    lie on it."""
    one, more, most = made

    def line(at: int) -> Trace:
        def value(a: float, b: float) -> float:
            return a + (b - a) * (at - _LAYERS[0])

        def each(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
            return {name: value(a.get(name, 0), b.get(name, 0)) for name in {**a, **b}}

        return Trace(
            {name: each(of, more.phases[name]) for name, of in one.phases.items()},
            value(one.host_bytes, more.host_bytes),
            each(one.sent, more.sent),
            value(one.operators, more.operators),
        )

    checked = line(_LAYERS[2]).phases
    exact = all(
        abs(sum(checked[name].values()) / sum(of.values()) - 1) < _APART
        for name, of in most.phases.items()
    )
    return replace(line(layers), exact=exact)


def _with_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    result = {**config, "num_hidden_layers": layers}
    if isinstance(kinds := config.get("layer_types"), list):
        result["layer_types"] = kinds[:layers]
    return result


@contextmanager
def _imagined(devices: int) -> Iterator[None]:
    """A process group in which this process is the first of so many and the others do nothing."""
    if devices == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=devices, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _trace(body: Body, config: dict[str, Any], length: int, rows: int) -> Trace:
    mesh = make_mesh(body, "cpu")
    ranks = mesh.context * mesh.ulysses
    mesh = replace(mesh, machine=GPU_NODE if ranks <= _NODE else GPU_CLUSTER)
    learner = untrained_learner(body, config, "the model", mesh)
    shown = learner.model.config
    choose("cpu", getattr(torch, body.dtype), head_size(shown), mesh.kernel)  # it needs numbers
    whole = -(-length // (step := multiple(mesh.context, mesh.ulysses))) * step
    shard = Shard(mesh, whole, length, ((0, *((length,) if whole > length else ())),))
    counter = LiveBytes()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _give_storage(learner)
        wrap_layers(learner, body, mesh)
        fix_rotary(learner.model, ContextSpec.from_config(config), length)
        if learner.store is not None:
            learner.store.copies = _NoCopies(counter)  # type: ignore[assignment]
        for tensor in [*learner.parameters(), *learner.buffers()]:
            counter.add(tensor, PARAMETERS)
        part = {name: torch.zeros(rows, whole // ranks, dtype=torch.long)
                for name in ("input_ids", "position_ids")}  # fmt: skip
        part["labels"] = torch.full_like(part["input_ids"], IGNORED)
        _count_steps(learner, body, {**part, KEY: shard}, counter)
    return Trace(
        {
            phase: {kind: float(size) for kind, size in peak.of.items() if kind != HOST}
            for phase, peak in counter.peaks.items()
        },
        float(counter.most_on_host),
        {name: float(size) for name, size in counter.sent.items() if size},
        float(counter.operators),
    )


def _give_storage(learner: Learner) -> None:
    """Replace tensors on the meta device by fake ones of the CPU."""
    for module in learner.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                new = torch.empty(old.shape, dtype=old.dtype)
                module.register_parameter(name, torch.nn.Parameter(new, old.requires_grad))
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _count_steps(learner: Learner, body: Body, part: dict[str, Any], counter: LiveBytes) -> None:
    """Two steps, of which the second is counted: the first makes the moments."""
    parameters = learner.trained()
    made = optimizers.make(parameters, body.optimizer)
    optimizers.set_rate(made, 1e-4)
    last = learner.layers[-1]

    def note_input(_: Any, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: setattr(counter, "phase", OTHERS))

    last.register_forward_pre_hook(note_input, with_kwargs=True)
    for _ in range(2):
        counter.start()
        with counter, counter.resizes():
            counter.kind, counter.phase = WORKING, FORWARD
            nll = learner(part)
            counter.relabel_all(WORKING, KEPT)
            counter.phase = LAST
            nll.backward()
            counter.relabel_all(KEPT, WORKING)
            counter.phase = UPDATE
            if body.optimizer.clip is not None:
                torch.nn.utils.clip_grad_norm_(list(parameters.values()), body.optimizer.clip)
            for optimizer in made:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            del nll
        state = [
            value
            for optimizer in made
            for moments in optimizer.state.values()
            for value in moments.values()
            if isinstance(value, torch.Tensor)
        ]
        counter.relabel(state, MOMENTS)


class _NoCopies:
    """In place of a stream of copies: nothing waits, and what goes to the host is counted there."""

    def __init__(self, counter: LiveBytes) -> None:
        self._counter = counter

    @contextmanager
    def behind(self) -> Iterator[None]:
        yield

    def mark(self) -> None:
        return None

    def wait(self, mark: None) -> None:
        return None

    def host_memory(self, like: torch.Tensor) -> torch.Tensor:
        with self._counter.making(HOST):
            return torch.empty_like(like)
