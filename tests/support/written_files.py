"""Checkpoints that tests write, and the files in their folders."""

from __future__ import annotations

from pathlib import Path

import torch
from models import contents

from regraft.checkpoint.write.shard_plan import PlannedTensor, plan_shards
from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.checkpoint.write.staging import Staging

JOURNAL = ".regraft-journal.jsonl"


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "embed": torch.randn(60, 32, generator=draw).bfloat16(),
        "norm": torch.randn(33, generator=draw).bfloat16(),
        "up": torch.randn(50, 32, generator=draw),
        "scalar": torch.tensor(3.5),
        "none": torch.zeros(0, 7),
        "ids": torch.arange(9),
    }


def planned(values: dict[str, torch.Tensor]) -> list[PlannedTensor]:
    return [PlannedTensor(name, tuple(t.shape), t.dtype) for name, t in values.items()]


def three_shards() -> dict[str, list[PlannedTensor]]:
    return plan_shards(planned(tensors()), like=None, max_shard_bytes=4000)


def write_all(target: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    with Staging(target, job="job", resume=resume, overwrite=overwrite) as staging:
        writer = CheckpointWriter(staging, three_shards())
        for name, value in tensors().items():
            if not writer.finished(name):
                writer.write(name, value)
        writer.add_file("config.json", b"{}")
        writer.finish()
        staging.publish()


def published(folder: Path) -> dict[str, bytes]:
    """The files of an output, without the list of them."""
    files = contents(folder)
    files.pop(".regraft-files.json", None)
    return files


def unfinished(target: Path, *, job: str = "job") -> Path:
    """The staging folder of a run that finished one piece."""
    with Staging(target, job=job) as staging:
        (staging.folder / "half").write_text("half")
        staging.record("piece", size=3)
    return staging.folder
