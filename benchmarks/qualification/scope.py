"""How large a part is, where it runs, and measuring time and memory there."""

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
GIB = 2**30
LAYERS = LLAMA_8B["num_hidden_layers"]
_TINY = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """scale: of the sizes. folder: for files that a part makes. deadline: of time.monotonic, when
    the part is killed."""

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
        """Of the arithmetic that training uses here."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def model(self, layers: int) -> dict[str, int]:
        """Sizes of a model of Llama-3-8B's shapes with so many layers; tiny ones to rehearse."""
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
        """Seconds of the quickest of several runs after one that warms up."""
        work()
        return min(self.timed(work)[0] for _ in range(times))

    def reset_peaks(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peaks(self) -> dict[str, float]:
        """GiB at most since `reset_peaks`, and allocations tried again since the process began.

        allocated: by live tensors; active: also by freed ones that another stream may still use;
        reserved: also by what the allocator keeps; used: all that the driver counts, now.
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

    def clear(self) -> None:
        """Give back the memory of what is no longer referenced."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def relative(value: torch.Tensor, exact: torch.Tensor) -> float:
    """||value - exact|| / ||exact||, in float64."""
    exact = exact.double()
    return float((value.double() - exact).norm() / exact.norm().clamp_min(1e-300))
