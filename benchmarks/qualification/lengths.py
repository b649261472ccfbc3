"""Steps of Llama-3-8B at long rows: time, MFU and memory, each memory saver, the longest row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qualification.report import Report
from qualification.scope import GIB, LAYERS, Scope
from qualification.trainee import Measured, OutOfMemory, Trainee, card_peak, extrapolated
from regraft.parallel.kernels.kernel import Grads, Kernel
from regraft.train.estimate.budget import Shape
from regraft.train.estimate.machine import available_memory
from regraft.train.recipe.execution import Memory
from regraft.train.step.memory import RESIDENT

BOTH = {"offload": True, "tiled_mlp": 8192}
FUSED = {"fused_norms": True, "fused_rope": True, "fused_swiglu": True}
MEMORY_SAVERS: dict[str, dict[str, Any]] = {  # in the order of their value, if time runs out
    "keep_attention": {"keep_attention": True},
    "keep_attention and fused": {"keep_attention": True, **FUSED},
    "keep_attention and fused_norms": {"keep_attention": True, "fused_norms": True},
    "fused": FUSED,
    "recomputed": {},
    "fused_norms": {"fused_norms": True},
    "offload": {"offload": True},
    "tiled_mlp": {"tiled_mlp": 8192},
    "offload and tiled_mlp": BOTH,
    "all three": {**BOTH, "keep_attention": True},
    "all three and fused": {**BOTH, "keep_attention": True, **FUSED},
}


def measure_64k(scope: Scope, report: Report) -> None:
    """All layers of the model, with `keep_attention`, and with the fused kernels besides."""
    for memory in ({}, {"keep_attention": True}, {"keep_attention": True, **FUSED}):
        _measure_whole(scope, report, scope.pick(65536, 16384, 64), memory)
        scope.clear()


def measure_128k(scope: Scope, report: Report) -> None:
    """All layers at 128k tokens with their inputs on the host; the first step allocates them."""
    length = scope.pick(131072, 32768, 64)
    _measure_whole(scope, report, length, {"offload": True}, steps=2)


def _measure_whole(
    scope: Scope, report: Report, length: int, memory: dict[str, Any], steps: int = 1
) -> None:
    name = ", ".join(memory) or "recomputed"
    try:
        seconds, trainee = scope.timed(
            lambda: Trainee(scope, scope.pick(LAYERS, LAYERS, 2), length, memory)
        )
        report.figure("model made", seconds=seconds, layers=trainee.layers)
        for step in range(1, steps + 1):
            measured = trainee.measure(length)
            report.figure(f"{name}, step {step}", **measured.values(card_peak(scope)))
            if scope.left() < 1.3 * measured.seconds:
                return
    except OutOfMemory as error:
        report.figure(f"{name}: out of memory", length=length, error=str(error)[:200])


def measure_levers(scope: Scope, report: Report) -> None:
    """Steps of few layers with each memory saver and kernel, extrapolated to all layers."""
    length = scope.pick(65536, 32768, 64)
    counts = scope.pick((2, 4), (2, 3), (1, 2))
    _line(scope, report, "kept", scope.pick(16384, 8192, 64), counts, {"checkpoint": False})
    for name, memory in {**MEMORY_SAVERS, **_other_switches()}.items():
        _line(scope, report, name, length, counts, memory)
    if scope.device.type == "cuda":
        _line(scope, report, "recomputed, flash", length, counts, {}, "flash")


def measure_long_rows(scope: Scope, report: Report) -> None:
    """Steps of few layers at 128k tokens, without and with `keep_attention`, and at 256k."""
    length = scope.pick(131072, 32768, 128)
    for name in ("offload and tiled_mlp", "all three"):
        _line(scope, report, name, length, (2, 3), MEMORY_SAVERS[name])
    _line(scope, report, "all three", 2 * length, (2, 3), MEMORY_SAVERS["all three"])


def _other_switches() -> dict[str, dict[str, Any]]:
    """Switches of a recipe's `memory` that are off by default and not in MEMORY_SAVERS."""
    known = {"checkpoint", *(key for saver in MEMORY_SAVERS.values() for key in saver)}
    return {
        name: {name: True}
        for name, field in Memory.model_fields.items()
        if field.default is False and name not in known
    }


def _line(
    scope: Scope, report: Report, name: str, length: int, counts: tuple[int, int],
    memory: dict[str, Any], kernel: str = "auto",
) -> None:  # fmt: skip
    """Steps of two models of few layers, and of all layers by the straight line through them."""
    peak = card_peak(scope)
    measured: list[Measured] = []
    for layers in counts:
        if measured and scope.left() < 6 * measured[0].seconds + 3:
            report.figure(f"{name}: no time left", layers=layers, length=length)
            return
        try:
            trainee = Trainee(scope, layers, length, memory, kernel)
            steps = [trainee.measure(length) for _ in range(2)]  # the first allocates
            measured.append(min(steps, key=lambda step: step.seconds))
            del trainee
        except OutOfMemory as error:
            report.figure(f"{name}: out of memory", layers=layers, length=length,
                          error=str(error)[:200])  # fmt: skip
            return
        finally:
            scope.clear()
        report.figure(name, **measured[-1].values(peak))
    report.figure(f"{name}, continued", **extrapolated(*measured).values(peak))


# The longest row


def measure_longest(scope: Scope, report: Report) -> None:
    """The longest row of the whole model that the device's memory holds, also with fused kernels.

    Three layers train beside a tensor of the size of the other layers' weights, gradients and
    moments; with `offload` the inputs of only two layers are on the device at a time, whatever
    their number. Attention is replaced by a kernel that allocates what the real one does and
    computes nothing, which makes a step linear in the length: peaks of two lengths give the length
    that should fit, which is then run, and a longer or a shorter one. The host needs `host_GiB` for
    the inputs of all layers but the last two.
    """
    for memory in (BOTH, {**BOTH, **FUSED}):
        _longest(scope, report, memory)
        scope.clear()


def _longest(scope: Scope, report: Report, memory: dict[str, Any]) -> None:
    layers, savers = scope.pick(LAYERS, LAYERS, 4), " and ".join(memory)
    trainee = Trainee(scope, 3, 1 << 20, memory)
    shape = trainee.throughput.shape
    ballast = _allocate_layers(scope, trainee, layers - trainee.layers)
    with _Idle(trainee.mesh.kernel) as kernel:
        short, long = scope.pick((131072, 262144), (16384, 32768), (64, 128))
        real = trainee.measure(short)
        kernel.idle = True
        idle = trainee.measure(short)
        report.figure("real attention", savers=savers, length=short, **real.peaks)
        report.figure("idle attention", savers=savers, length=short, **idle.peaks)
        more = trainee.measure(long)
        report.figure("idle attention", savers=savers, length=long, **more.peaks)
        if scope.device.type != "cuda":
            return
        total = torch.cuda.mem_get_info(scope.device)[1] / GIB
        outside = more.peaks["used_GiB"] - torch.cuda.memory_reserved(scope.device) / GIB
        a_token = (more.peaks["active_GiB"] - idle.peaks["active_GiB"]) / (long - short)
        excess = (real.peaks["active_GiB"] - idle.peaks["active_GiB"]) / short  # GiB a token
        left = total - outside - 0.5 - more.peaks["active_GiB"] - excess * long
        fits = int(0.97 * (long + left / (a_token + excess))) // 4096 * 4096
        report.figure("should fit", savers=savers, length=fits, outside_GiB=outside,
                      KiB_a_token=(a_token + excess) * 2**20, **_host(shape, fits))  # fmt: skip
        longer, shorter = int(1.08 * fits) // 4096 * 4096, int(0.93 * fits) // 4096 * 4096
        lengths = [fits]
        while lengths:
            length = lengths.pop()
            if scope.left() < 2 * more.seconds * length / long + 2:
                report.figure("no time left", savers=savers, length=length)
                break
            fitted = _runs(scope, report, trainee, savers, length, int(excess * GIB * length))
            if length == fits:
                lengths.append(longer if fitted else shorter)
    del ballast


def _runs(
    scope: Scope, report: Report, trainee: Trainee, savers: str, length: int, workspace: int
) -> bool:
    """Whether a step fits beside `workspace` bytes, which the real attention needs more."""
    scope.clear()
    try:
        beyond_idle = torch.empty(max(0, workspace), dtype=torch.uint8, device=scope.device)
        measured = trainee.measure(length)
        del beyond_idle
    except OutOfMemory as error:
        report.figure("out of memory", savers=savers, length=length, error=str(error)[:200])
        return False
    report.figure("fits", savers=savers, length=length, step_s=measured.seconds, **measured.peaks)
    return True


def _host(shape: Shape, length: int) -> dict[str, float]:
    needed = 2 * shape.hidden * (LAYERS - RESIDENT) * length / GIB
    return {
        "host_GiB": needed, "host_free_GiB": available_memory() / GIB,
        "host_holds": int(available_memory() / (needed * GIB / length)),
    }  # fmt: skip


def _allocate_layers(scope: Scope, trainee: Trainee, layers: int) -> Tensor:
    """A tensor of the bytes that `layers` more layers take: weights, and LoRA's weights, gradients
    and moments in float32."""
    layer = trainee.learner.layers[0]
    size = 0
    for parameter in layer.parameters():
        states = 4 if parameter.requires_grad else 1
        size += parameter.numel() * parameter.element_size() * states
    return torch.empty(size * layers, dtype=torch.uint8, device=scope.device)


class _Idle:
    """Attention by the chosen kernel, or, while `idle`, by one that only allocates."""

    def __init__(self, name: str) -> None:
        from regraft.parallel import shards

        self._module: Any = shards
        self._choose, self._name, self.idle = self._module.choose, name, False

    def __enter__(self) -> _Idle:
        def choose(*arguments: Any) -> Kernel:
            kernel = self._choose(*arguments)
            return _OnlyAllocates(kernel.name) if self.idle else kernel

        self._module.choose = choose
        return self

    def __exit__(self, *_: object) -> None:
        self._module.choose = self._choose


class _OnlyAllocates(Kernel):
    """out and lse, dq, dk and dv in the layouts of the real kernels, filled with zeros."""

    def __init__(self, name: str) -> None:
        self.name = name

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out = torch.zeros_like(q.transpose(1, 2).contiguous()).transpose(1, 2)
        return out, q.new_zeros(q.shape[:-1], dtype=torch.float32)

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        causal: bool, scale: float,
    ) -> Grads:  # fmt: skip
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
