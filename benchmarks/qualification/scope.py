"""Size and device of a run, and measurements of time and memory on that device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from training import LLAMA_8B

Scale = Literal["full", "quick", "rehearse"]
Value = TypeVar("Value")
GIB, MIB = 2**30, 2**20
LAYERS = LLAMA_8B["num_hidden_layers"]
_TINY = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """scale: which sizes to use. folder: for files that a part makes. deadline: the time by
    time.monotonic at which the part is killed."""

    scale: Scale
    device: torch.device
    folder: Path
    deadline: float

    def pick(self, full: Value, quick: Value, tiny: Value) -> Value:
        """The value for this scale."""
        return {"full": full, "quick": quick, "rehearse": tiny}[self.scale]

    def left(self) -> float:
        """Seconds until the part is killed."""
        return self.deadline - time.monotonic()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of training on this device."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def model(self, layers: int) -> dict[str, int]:
        """Sizes of a Llama-3-8B with this number of layers; tiny ones for a rehearsal."""
        sizes = _TINY if self.scale == "rehearse" else LLAMA_8B
        return {**sizes, "num_hidden_layers": layers}

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, work: Callable[[], Value]) -> tuple[float, Value]:
        """(seconds, result), the device idle before and after."""
        self.synchronize()
        began = time.perf_counter()
        result = work()
        self.synchronize()
        return time.perf_counter() - began, result

    def best(self, work: Callable[[], Any], times: int = 3) -> float:
        """Seconds of the quickest of several runs after a warm-up."""
        work()
        return min(self.timed(work)[0] for _ in range(times))

    def reset_peaks(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peaks(self) -> dict[str, float]:
        """Peaks in GiB since `reset_peaks`, and allocation retries since the process began.

        allocated: live tensors; active: also freed ones that another stream may still use;
        reserved: also free memory that the allocator keeps; used: all that the driver counts, now.
        """
        if self.device.type != "cuda":
            return {}
        stats = torch.cuda.memory_stats(self.device)
        free, total = torch.cuda.mem_get_info(self.device)
        return {
            "allocated_GiB": stats["allocated_bytes.all.peak"] / GIB,
            "active_GiB": stats["active_bytes.all.peak"] / GIB,
            "reserved_GiB": stats["reserved_bytes.all.peak"] / GIB,
            "used_GiB": (total - free) / GIB,
            "retries": stats["num_alloc_retries"],
        }

    def outside_allocator(self) -> float:
        """MiB that the driver counts in use beyond what torch's allocator reserves."""
        if self.device.type != "cuda":
            return 0.0
        free, total = torch.cuda.mem_get_info(self.device)
        return (total - free - torch.cuda.memory_reserved(self.device)) / MIB

    def clear(self) -> None:
        """Free the memory of unreferenced tensors."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def relative(value: torch.Tensor, exact: torch.Tensor) -> float:
    """||value - exact|| / ||exact||, in float64."""
    exact = exact.double()
    return float((value.double() - exact).norm() / exact.norm().clamp_min(1e-300))
