"""What a GPU can do and how much of its memory was used, without a GPU."""

from __future__ import annotations

import pytest
import torch

from regraft.train.estimate import throughput


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12), ("NVIDIA H200 NVL", 835e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 3090", 71e12), ("NVIDIA T4", None),
    ],
)  # fmt: skip
def test_the_peak_rate_is_of_the_very_card(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert throughput.known_peak(torch.device("cuda")) == peak


def test_peaks_count_what_other_streams_hold_and_what_the_allocator_keeps(monkeypatch):
    stats = {"active_bytes.all.peak": 7, "reserved_bytes.all.peak": 9, "num_alloc_retries": 2}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
    assert throughput.peak_memory(torch.device("cuda")) == throughput.PeakMemory(7, 9, 2)
    own = throughput.peak_memory(torch.device("cpu"))
    assert own.active > 1 << 20
    assert own.reserved is own.retries is None
