"""The card and the versions; rates, and memory outside of tensors."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F

from qualification.report import Report
from qualification.scope import GIB, MIB, Scope
from regraft.device import available_memory

_PACKAGES = ("torch", "transformers", "peft", "triton", "bitsandbytes")


def describe_machine(scope: Scope, report: Report) -> None:
    """Report the card, the driver, the libraries and the host in one line."""
    cuda = scope.device.type == "cuda"
    values = {
        "card": torch.cuda.get_device_name(scope.device) if cuda else "no GPU (rehearsal)",
        "date": date.today().isoformat(),
        "driver": _driver() if cuda else "none",
        "Python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
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
    """Constants of `regraft plan`: memory of CUDA's context and libraries, rates of the card."""
    cuda = scope.device.type == "cuda"
    if cuda:
        torch.empty(1, device=scope.device)
        report.figure("CUDA context", MiB=scope.outside_allocator(), allocator_MiB=_reserved(scope))
        wide = torch.randn(4096, 4096, device=scope.device, dtype=torch.bfloat16)
        with _added_memory(scope, report, "cuBLAS, first product"):
            wide @ wide
        q = torch.randn(1, 32, 4096, 128, device=scope.device, dtype=torch.bfloat16)
        q.requires_grad_()
        with _added_memory(scope, report, "attention, first call"):
            F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
        del wide, q
        scope.clear()
    side = scope.pick(8192, 4096, 64)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        n = side if dtype != torch.float64 else side // 2
        a = torch.randn(n, n, device=scope.device, dtype=dtype)
        seconds = scope.best(partial(torch.matmul, a, a))
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
            seconds = scope.best(partial(target.copy_, source, non_blocking=True))
            report.figure(name, GBps=size / seconds / 1e9)


def _reserved(scope: Scope) -> float:
    return torch.cuda.memory_reserved(scope.device) / MIB


@contextmanager
def _added_memory(scope: Scope, report: Report, name: str) -> Iterator[None]:
    """Report the memory that the block adds, outside the allocator and in it."""
    outside, reserved = scope.outside_allocator(), _reserved(scope)
    yield
    scope.synchronize()
    report.figure(
        name, MiB=scope.outside_allocator() - outside, allocator_MiB=_reserved(scope) - reserved
    )
