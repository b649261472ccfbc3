"""The plan of a model's files: which tensor goes to which shard, and where in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from regraft.checkpoint.read.files import SINGLE
from regraft.checkpoint.read.header import DTYPE_CODES, TensorInfo
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.disk import chunks, need_space, preallocated, write_at
from regraft.errors import writing


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is going to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def like(cls, name: str, tensor: torch.Tensor | TensorInfo) -> PlannedTensor:
        """A tensor with the shape and dtype of another one."""
        return cls(name, tuple(tensor.shape), tensor.dtype)

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


def plan_shards(
    tensors: list[PlannedTensor], *, like: Checkpoint | None, max_shard_bytes: int | None
) -> dict[str, list[PlannedTensor]]:
    """Shard file -> its tensors, each shard in the order of `tensors`.

    max_shard_bytes: fill shards up to this size (a larger tensor gets a shard of its own) and name
    them as transformers does: model.safetensors or model-00001-of-0000N.safetensors.
    like: without `max_shard_bytes`, put each tensor into the shard that holds it in this
    checkpoint, new ones into the last. With neither, all tensors go to one file.
    """
    if max_shard_bytes is None and like is not None and len(like.shards) > 1:
        last = list(like.shards)[-1]
        plan: dict[str, list[PlannedTensor]] = {shard: [] for shard in like.shards}
        for tensor in tensors:
            info = like.tensors.get(tensor.name)
            plan[last if info is None else info.shard].append(tensor)
        if all(plan.values()):
            return plan
        groups = [group for group in plan.values() if group]
    else:
        groups, room = [[]], max_shard_bytes or 0
        for tensor in tensors:
            if max_shard_bytes is not None and groups[-1] and tensor.nbytes > room:
                groups.append([])
                room = max_shard_bytes
            groups[-1].append(tensor)
            room -= tensor.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {
        f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)
    }


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    plan: list[PlannedTensor],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write one safetensors file from a stream of tensors, in any order, one in memory at a time.

    The file gets its name when it is complete. Raises ValueError if the tensors are not those of
    `plan`, OutputError if the disk refuses.
    """
    expected = {tensor.name: tensor for tensor in plan}
    head, offsets, size = build_header(plan, metadata)
    part = path.with_name(f".{path.name}.part")
    need_space(path.parent, {part.name: size})
    with writing(path):
        fd = preallocated(part, head, size)
        try:
            for name, tensor in tensors:
                planned = expected.pop(name)
                if (tuple(tensor.shape), tensor.dtype) != (planned.shape, planned.dtype):
                    raise ValueError(
                        f"'{name}' is {tensor.dtype} {list(tensor.shape)}, planned were "
                        f"{planned.dtype} {list(planned.shape)}"
                    )
                at = offsets[name]
                for chunk in chunks(tensor):
                    write_at(fd, chunk, at)
                    at += len(chunk)
            if expected:
                raise ValueError(f"planned tensors were not given: {sorted(expected)[:3]}")
            os.fsync(fd)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        part.replace(path)


def build_header(
    tensors: list[PlannedTensor], metadata: dict[str, str] | None
) -> tuple[bytes, dict[str, int], int]:
    """(header bytes, offset of each tensor from the start of the file, size of the file)."""
    header: dict[str, Mapping[str, object]] = {"__metadata__": {**(metadata or {}), "format": "pt"}}
    starts: dict[str, int] = {}
    at = 0
    # Stable: one dtype keeps the given order. Larger items first keeps all of them aligned.
    for tensor in sorted(tensors, key=lambda t: -t.dtype.itemsize):
        starts[tensor.name] = at
        header[tensor.name] = {
            "dtype": DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    offsets = {tensor.name: start + starts[tensor.name] for tensor in tensors}
    return len(text).to_bytes(8, "little") + text, offsets, start + at
