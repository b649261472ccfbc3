"""Where the time of a training step goes: seconds by kind of kernel, and the longest kernels."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from torch.profiler import ProfilerActivity, profile

from qualification.lengths import MEMORY_SAVERS
from qualification.report import Report
from qualification.scope import Scope
from qualification.trainee import Trainee, card_peak

# The first kind with a word that is part of a kernel's name.
_KINDS = {
    "attention": ("flash", "cudnn", "sdpa", "fmha", "attention"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "mm", "linear"),
    "norms": ("norm",),
    "sums and softmax": ("reduce", "softmax", "sum", "mean"),
    "copies": ("memcpy", "memset", "copy", "cat", "fill"),
    "fused kernels": ("_rotate", "_swiglu"),
    "elementwise": ("elementwise", "vectorized", "mul", "add", "silu", "neg"),
}
_LONGEST = 12


def profile_step(scope: Scope, report: Report) -> None:
    """A step of two layers at 64k tokens, without and with fused kernels, by torch's profiler:
    device seconds of each kind of kernel and of the longest kernels."""
    length = scope.pick(65536, 32768, 64)
    for name in ("keep_attention", "keep_attention and fused"):
        trainee = Trainee(scope, 2, length, MEMORY_SAVERS[name])
        trainee.measure(length)
        seconds = trainee.measure(length)
        report.figure(name, **seconds.values(card_peak(scope)))
        _profile(scope, report, name, trainee, length)
        del trainee
        scope.clear()


def _profile(scope: Scope, report: Report, name: str, trainee: Trainee, length: int) -> None:
    cuda = scope.device.type == "cuda"
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        trainee.measure(length)
    seconds: dict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for event in profiler.key_averages():
        own: Any = event.self_device_time_total if cuda else event.self_cpu_time_total
        seconds[event.key] += own / 1e6
        calls[event.key] += event.count
    kinds: dict[str, float] = defaultdict(float)
    for kernel, time in seconds.items():
        kinds[kind_of(kernel)] += time
    total = sum(seconds.values())
    for kind, time in sorted(kinds.items(), key=lambda pair: -pair[1]):
        report.figure(f"{name}: {kind}", device_s=time, share=time / total)
    for kernel, time in sorted(seconds.items(), key=lambda pair: -pair[1])[:_LONGEST]:
        report.figure(f"{name}: {_short(kernel)}", calls=calls[kernel], device_s=time)


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name; "other" where no word is known."""
    lower = kernel.lower()
    for kind, words in _KINDS.items():
        if any(word in lower for word in words):
            return kind
    return "other"


def _short(kernel: str) -> str:
    """A kernel's name without namespaces' common beginnings, 110 characters at most."""
    for word in ("void ", "at::native::", "(anonymous namespace)::"):
        kernel = kernel.replace(word, "")
    return kernel[:110]
