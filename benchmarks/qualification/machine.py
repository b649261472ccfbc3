"""The card and the versions; the rates and the memory that no tensor shows."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F

from qualification.report import Report
from qualification.scope import GIB, Scope
from regraft.train.estimate.machine import available_memory

MIB = 2**20


def describe_machine(scope: Scope, report: Report) -> None:
    """One line on the card, the driver, the libraries and the host."""
    cuda = scope.device.type == "cuda"
    values = {
        "card": torch.cuda.get_device_name(scope.device) if cuda else "no GPU (rehearsal)",
        "date": report_date(),
        "driver": _driver() if cuda else "none",
        "Python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "peft", "triton")},
        "CUDA": torch.version.cuda or "none",
        "cuDNN": str(torch.backends.cudnn.version()) if cuda else "none",
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())) if cuda else "none",
        "cores": os.cpu_count(),
        "host_GiB": round(available_memory() / GIB),
        "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "default"),
        "TF32_override": os.environ.get("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "not set"),
    }
    if cuda:
        properties = torch.cuda.get_device_properties(scope.device)
        values["memory_GiB"] = round(properties.total_memory / GIB, 2)
        values["capability"] = f"{properties.major}.{properties.minor}"
    report.machine(**values)


def report_date() -> str:
    from datetime import date

    return date.today().isoformat()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.check_output(command, text=True, timeout=20).split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def measure_constants(scope: Scope, report: Report) -> None:
    """What the plan has to assume: memory of context and libraries, and the rates of the card."""
    cuda = scope.device.type == "cuda"
    if cuda:
        torch.empty(1, device=scope.device)
        with _outside_allocator() as added:
            pass
        report.figure("CUDA context", MiB=added[0], allocator_MiB=_reserved())
        wide = torch.randn(4096, 4096, device=scope.device, dtype=torch.bfloat16)
        with _outside_allocator() as added:
            before = _reserved()
            wide @ wide
            torch.cuda.synchronize()
        report.figure("cuBLAS, first product", MiB=added[1], allocator_MiB=_reserved() - before)
        q = torch.randn(1, 32, 4096, 128, device=scope.device, dtype=torch.bfloat16)
        q.requires_grad_()
        with _outside_allocator() as added:
            before = _reserved()
            F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
            torch.cuda.synchronize()
        report.figure("attention, first call", MiB=added[1], allocator_MiB=_reserved() - before)
        del wide, q
        scope.clear()
    side = scope.pick(8192, 4096, 64)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        n = side if dtype != torch.float64 else side // 2
        a = torch.randn(n, n, device=scope.device, dtype=dtype)
        seconds = scope.best(lambda: a @ a)  # noqa: B023
        report.figure("product", dtype=str(dtype)[6:], side=n, TFLOPs=2 * n**3 / seconds / 1e12)
    a = torch.empty(scope.pick(GIB, GIB // 2, 1 << 16), dtype=torch.uint8, device=scope.device)
    b = torch.empty_like(a)
    seconds = scope.best(lambda: b.copy_(a))
    report.figure("copy on the device, read and written", GBps=2 * a.numel() / seconds / 1e9)
    if cuda:
        size = a.numel()
        took, host = scope.timed(lambda: torch.empty(size, dtype=torch.uint8, pin_memory=True))
        report.figure("pinned memory, allocated", GBps=size / took / 1e9)
        for name, target, source in (("to the host", host, a), ("from the host", a, host)):
            seconds = scope.best(lambda: target.copy_(source, non_blocking=True))  # noqa: B023
            report.figure(name, GBps=size / seconds / 1e9)


def _reserved() -> float:
    return torch.cuda.memory_reserved() / MIB


@contextmanager
def _outside_allocator() -> Iterator[list[float]]:
    """MiB that the driver counts beyond the allocator's: [before, added within]."""

    def outside() -> float:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / MIB - _reserved()

    values = [outside()]
    yield values
    values.append(outside() - values[0])
