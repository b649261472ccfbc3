"""FLOPs, MFU and peak memory; those of a GPU by stand-ins for its driver."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from train_recipes import RECIPE, write_recipe

from regraft.data.batch import Row
from regraft.train.estimate import throughput
from regraft.train.estimate.budget import Shape
from regraft.train.estimate.step_time import step_flops
from regraft.train.estimate.throughput import document_lengths
from regraft.train.job import train_model
from regraft.train.output import log as metrics


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12), ("NVIDIA H200 NVL", 835e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 3090", 71e12), ("NVIDIA T4", None),
    ],
)  # fmt: skip
def test_the_peak_rate_is_that_of_the_named_card(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert throughput.known_peak(torch.device("cuda")) == peak


def test_peaks_count_what_other_streams_hold_and_what_the_allocator_keeps(monkeypatch):
    stats = {"active_bytes.all.peak": 7, "reserved_bytes.all.peak": 9, "num_alloc_retries": 2}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
    assert throughput.peak_memory(torch.device("cuda")) == throughput.PeakMemory(7, 9, 2)
    own = throughput.peak_memory(torch.device("cpu"))
    assert own.active > 1 << 20
    assert own.reserved is own.retries is None


def test_speed_is_logged_and_mfu_only_for_a_known_peak(trained_model, data_folder, tmp_path):
    line = metrics.read_lines(trained_model / "metrics.jsonl")[-1]
    assert "mfu" not in line
    assert line["tokens_per_second"] == pytest.approx(2 * 256 / line["seconds"])
    assert line["left"] == 0
    assert line["memory"] > 0
    text = RECIPE.replace("mix: {{short: 1}}", "mix: {{long: 1}}") + "parallel: {{peak: 1e9}}\n"
    recipe = write_recipe(tmp_path, data_folder, text.replace("steps: 5", "steps: 1"))
    train_model(recipe, tmp_path / "out", device="cpu")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    count = sum(
        value.numel() for value in load_file(tmp_path / "out" / "model.safetensors").values()
    )
    line = metrics.read_lines(tmp_path / "out" / "metrics.jsonl")[0]
    flops = 4 * step_flops(Shape.of(config, count, count), 64, full=True, checkpoint=False).total
    assert line["mfu"] == pytest.approx(flops / line["seconds"] / 1e9)


def test_attention_counts_within_documents():
    ids = torch.zeros(6, dtype=torch.long)
    row = Row(ids, ids, ids, torch.tensor([0, 0, 0, 1, 1, 2]))
    assert document_lengths(row).tolist() == [3, 2, 1]
