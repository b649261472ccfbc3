"""The devices of an estimate: named GPUs, or the GPUs or the CPU of this machine.

The rates of a GPU are shares of its published ones. That of a CPU is measured by a few matrix
products of the model's shapes. Both are estimates, and printed as such.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from regraft.device import available_memory, total_memory
from regraft.errors import InputError

GIB = 2**30
_MIB = 2**20
# Measured on an H100 with torch 2.11 (benchmarks/results/gpu.md). The CUDA context, cuBLAS,
# attention's workspace; what the allocator has beyond live tensors in a step of 32 layers at 64k:
_GPU_OVERHEAD = (527 + 94 + 346) * _MIB + 2.9 * GIB
_NCCL = 1132 * _MIB  # where there are several processes
_CPU_OVERHEAD = 0.8 * GIB  # Python with torch and transformers loaded
_USED = 0.98  # of a device's memory
_HOST_USED = 0.8
# Shares of a GPU's published rates in whole training steps, fitted to those measured on an H100:
_ACHIEVED = 0.70  # by matrix products
_ATTENTION_ACHIEVED = 0.54
_BANDWIDTH_ACHIEVED = 0.87  # a copy on the device: 2.9 of 3.35 TB/s
_CPU_ACHIEVED = 0.6  # of the rate of its matrix products, by whole training steps
_MEASURED_SECONDS = 0.2


@dataclass(frozen=True)
class Device:
    """A GPU by NVIDIA's data sheet. peak: bfloat16 FLOP/s without sparsity; gibibytes: of memory,
    as the driver counts them; bandwidth: bytes a second of that memory."""

    peak: float
    gibibytes: float
    bandwidth: float


# by name; one that begins like another comes first
DEVICES = {
    "B200": Device(2250e12, 179, 8e12), "H200NVL": Device(835e12, 139, 4.8e12),
    "H200": Device(989e12, 139, 4.8e12), "H100PCIE": Device(756e12, 79, 2e12),
    "H100NVL": Device(835e12, 93, 3.9e12), "H100": Device(989e12, 79, 3.35e12),
    "A100": Device(312e12, 79, 2.04e12), "L40S": Device(362e12, 44, 0.864e12),
    "A6000": Device(155e12, 47, 0.768e12), "RTX4090": Device(165e12, 23, 1.008e12),
    "RTX3090": Device(71e12, 23, 0.936e12),
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Devices of one kind.

    memory: usable bytes of one device. rate: FLOP/s of one device in matrix products, but for
    attention, whose rate is attention_rate. bandwidth: bytes a second that operators between them
    read and write in its memory; None where the rates are averages over whole steps. host: usable
    bytes of host memory for all devices together. alone_overhead: bytes on a single device besides
    parameters and activations. call_seconds: time to start one operator.
    """

    name: str
    devices: int
    memory: float
    rate: float
    attention_rate: float
    host: float
    bandwidth: float | None = None
    alone_overhead: float = _GPU_OVERHEAD
    call_seconds: float = 5e-6
    is_cpu: bool = False

    @property
    def overhead(self) -> float:
        """The same among several devices: with the buffers of their communication."""
        return self.alone_overhead + (_NCCL if self.devices > 1 else 0)


def parse_machine(text: str, host: float | None) -> Machine:
    """Parse '8xH100-80', 'H200' or '4xA100-40'. host: bytes; default: 128 GiB a device.

    Raises InputError for an unknown device.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([A-Za-z0-9]+)(?:-(\d+))?", text.strip())
    name = match[2].upper() if match else ""
    if match is None or name not in DEVICES or int(match[1] or 1) < 1:
        raise InputError(
            f"--gpus '{text}' is not like 8xH100-80; known are {', '.join(DEVICES)}, with GB after "
            "a dash where they differ."
        )
    device = DEVICES[name]
    memory = (float(match[3]) * 1e9 / GIB * 0.98 if match[3] else device.gibibytes) * GIB
    count = int(match[1] or 1)
    return Machine(
        text,
        count,
        memory * _USED,
        device.peak * _ACHIEVED,
        device.peak * _ATTENTION_ACHIEVED,
        (host or count * 128 * GIB) * _HOST_USED,
        device.bandwidth * _BANDWIDTH_ACHIEVED,
    )


def this_machine(
    host: float | None, device: torch.device | None = None, width: tuple[int, int] = (512, 512)
) -> Machine:
    """This machine's GPUs, or its CPU if it has none or `device` is the CPU. Of a run on the GPU
    `device`, those of its processes on this machine.

    width: shape of the model's largest matrix, for the products that are timed on a CPU.
    Raises InputError for a GPU whose rate is not known.
    """
    on_cpu = device is not None and device.type == "cpu"
    if on_cpu or not torch.cuda.is_available():
        memory = host or available_memory()
        threads = torch.get_num_threads()
        rate = cpu_rate(*width) * _CPU_ACHIEVED
        return Machine(
            f"this CPU, {threads} thread{'s' if threads > 1 else ''}",
            1,
            memory,
            rate,
            rate,
            memory,
            alone_overhead=_CPU_OVERHEAD,
            is_cpu=True,
        )
    used: Sequence[int] = range(torch.cuda.device_count())
    if device is not None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        used = range(processes) if processes > 1 else [device.index or 0]
    every = [torch.cuda.get_device_properties(index) for index in used]
    properties = min(every, key=lambda gpu: gpu.total_memory)  # it limits all
    name = known_device(properties.name)
    if name is None:
        raise InputError(
            f"The rate of {properties.name} is not known; describe a similar one with --gpus."
        )
    gigabytes = round(properties.total_memory / 1e9)
    return parse_machine(f"{len(used)}x{name}-{gigabytes}", host or total_memory())


def known_device(name: str) -> str | None:
    """The key of DEVICES for the name that a GPU's driver reports."""
    plain = name.replace(" ", "").upper()
    return next((known for known in DEVICES if known in plain), None)


def cpu_rate(rows: int, columns: int) -> float:
    """FLOP/s of the fastest float32 product of 512 tokens with a [rows, columns] matrix, of those
    run within a fifth of a second."""
    rows, columns = min(rows, 4096), min(columns, 4096)
    tokens = 512
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(tokens, rows, generator=generator)
    right = torch.randn(rows, columns, generator=generator)
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < _MEASURED_SECONDS or best == float("inf"):
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return 2.0 * tokens * rows * columns / best
