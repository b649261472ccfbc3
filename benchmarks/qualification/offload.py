"""Layer inputs offloaded to the host: values after the way back, memory in use, rate."""

from __future__ import annotations

import torch

from qualification.report import Report
from qualification.scope import GIB, Scope
from regraft.train.step.memory import HostStore


def check_offload(scope: Scope, report: Report) -> None:
    """The store used as in a forward and a backward pass, with products between; the host runs far
    ahead of the device, since nothing is read until the end."""
    count, tokens = scope.pick(16, 8, 4), scope.pick(65536, 65536, 64)
    hidden = scope.model(1)["hidden_size"]
    make = torch.Generator(scope.device).manual_seed(0)
    weight = torch.randn(hidden, hidden, device=scope.device, dtype=scope.dtype, generator=make)
    weight /= hidden**0.5
    store = HostStore()
    size = tokens * hidden * weight.element_size()

    def sums(x: torch.Tensor) -> torch.Tensor:
        return x[:, :64].double().sum()

    def run() -> torch.Tensor:
        x = torch.randn(1, tokens, hidden, device=scope.device, dtype=scope.dtype, generator=make)
        handles, expected = [], []
        for _ in range(count):
            handles.append(store.pack(x))
            expected.append(sums(x))
            x = x @ weight
        wrong = torch.zeros((), device=scope.device, dtype=torch.int64)
        for handle, total in zip(reversed(handles), reversed(expected), strict=True):
            tensor = store.unpack(handle)
            wrong += sums(tensor) != total
            tensor @ weight
            del tensor
        return wrong

    for name in ("first, memory is pinned", "second", "third"):
        scope.reset_peaks()
        seconds, wrong = scope.timed(run)
        peaks = scope.peaks()
        tensors = peaks.get("active_GiB", 0.0) * GIB / size
        # this one, the next, one in transfer each way, and the product of the last; 1 for the rest
        report.check(
            name, int(wrong) == 0 and tensors < 6.5, tensors=count, wrong=int(wrong),
            seconds=seconds, GBps=2 * count * size / seconds / 1e9,
            active_in_tensors=tensors, **peaks,
        )  # fmt: skip
