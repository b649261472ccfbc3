"""Pairs of tensors on their way to a GPU, without one: streams and events are stand-ins."""

from __future__ import annotations

from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from regraft.adapters.extract import upload
from regraft.adapters.extract.select import Module
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError

CPU = torch.device("cpu")


class Stream:
    def __init__(self, *_):
        self.awaited = []

    def wait_stream(self, other):
        self.awaited.append(other)

    def wait_event(self, event):
        self.awaited.append(event)


class Event:
    made: ClassVar[list[Event]] = []

    def __init__(self):
        self.synchronized = 0
        Event.made.append(self)

    def record(self, stream):
        self.stream = stream

    def synchronize(self):
        self.synchronized += 1


@pytest.fixture
def compute(monkeypatch):
    """The computing stream."""
    compute = Stream()

    @contextmanager
    def stream(_):
        yield

    Event.made = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: compute)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(upload, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(upload, "_PART", 100)
    return compute


def model(folder, seed, dtype):
    """Five matrices of two shapes; more rows than are used in one of them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(9, 16), (7, 5), (9, 16), (7, 5), (12, 16)]
    tensors = {f"t{i}": torch.randn(s, generator=generator).to(dtype) for i, s in enumerate(shapes)}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return tensors


def test_every_pair_arrives_whole_in_buffers_used_in_turn(compute, tmp_path):
    one, other = model(tmp_path / "a", 0, torch.bfloat16), model(tmp_path / "b", 1, torch.float32)
    shapes = [(9, 16), (7, 5), (9, 16), (7, 5), (8, 16)]
    modules = [Module(f"m{i}", f"t{i}", "linear", shape) for i, shape in enumerate(shapes)]
    with Checkpoint.open(tmp_path / "a") as a, Checkpoint.open(tmp_path / "b") as b:
        seen = 0
        for module, (x, y) in upload.uploaded((a, b), modules, CPU):
            rows = module.shape[0]
            assert torch.equal(x, one[module.tensor][:rows])
            assert torch.equal(y, other[module.tensor][:rows])
            assert compute.awaited[-1] is Event.made[seen]  # and nothing is read before
            seen += 1
    assert seen == len(modules)
    # a pair's buffers are filled again only after they have been copied: two pairs later
    assert [event.synchronized for event in Event.made] == [1, 1, 1, 0, 0]
    assert not list(upload.uploaded((a, b), [], CPU))


def test_a_file_that_became_shorter_is_said(compute, tmp_path):
    model(tmp_path / "a", 0, torch.float32)
    modules = [Module("m", "t4", "linear", (12, 16))]
    with Checkpoint.open(tmp_path / "a") as a:
        path = tmp_path / "a" / "model.safetensors"
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - 50)
        with pytest.raises(CheckpointError, match="became shorter while it was read"):
            list(upload.uploaded((a, a), modules, CPU))


def test_bytes_beyond_a_tensor_are_not_read(tmp_path):
    model(tmp_path / "a", 0, torch.float32)
    with Checkpoint.open(tmp_path / "a") as a, pytest.raises(IndexError):
        a.read_into(memoryview(bytearray(8)), "t1", 7 * 5 * 4 - 4)
