"""Which shard a tensor goes to and where in it, planned before the first one comes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from regraft.checkpoint.read.files import SINGLE
from regraft.checkpoint.read.header import DTYPE_CODES
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.disk import chunks, need_space, preallocated, write_at
from regraft.errors import writing


@dataclass(frozen=True)
class Planned:
    """A tensor that is going to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


def plan_shards(
    tensors: list[Planned], *, like: Checkpoint | None, max_shard_bytes: int | None
) -> dict[str, list[Planned]]:
    """Shard file -> its tensors, each shard in the order of `tensors`.

    max_shard_bytes: cut greedily at this size (a larger tensor gets a shard of its own), named as
    transformers does: model.safetensors or model-00001-of-0000N.safetensors. Else `like`: tensors
    go to the shard that holds them there, new ones to the last. With neither, one file.
    """
    if max_shard_bytes is None and like is not None and len(like.shards) > 1:
        last = list(like.shards)[-1]
        plan: dict[str, list[Planned]] = {shard: [] for shard in like.shards}
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
    plan: list[Planned],
    metadata: dict[str, str] | None = None,
) -> None:
    """One safetensors file, streamed: header from `plan`, then the tensors as they come.

    Tensors come in any order and are held one at a time. The file appears under its name when it
    is whole. Raises ValueError if they are not those planned, OutputError if the disk refuses.
    """
    places = {tensor.name: tensor for tensor in plan}
    head, offsets, size = layout(plan, metadata)
    part = path.with_name(f".{path.name}.part")
    need_space(path.parent, {part.name: size})
    with writing(path):
        fd = preallocated(part, head, size)
        try:
            for name, tensor in tensors:
                planned = places.pop(name)
                if (tuple(tensor.shape), tensor.dtype) != (planned.shape, planned.dtype):
                    raise ValueError(
                        f"'{name}' is {tensor.dtype} {list(tensor.shape)}, planned were "
                        f"{planned.dtype} {list(planned.shape)}"
                    )
                at = offsets[name]
                for chunk in chunks(tensor):
                    write_at(fd, chunk, at)
                    at += len(chunk)
            if places:
                raise ValueError(f"planned tensors were not given: {sorted(places)[:3]}")
            os.fsync(fd)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        part.replace(path)


def layout(
    tensors: list[Planned], metadata: dict[str, str] | None
) -> tuple[bytes, dict[str, int], int]:
    """Header bytes, absolute offset of each tensor, and size of the file."""
    header: dict[str, Any] = {"__metadata__": {**(metadata or {}), "format": "pt"}}
    at = 0
    # Stable: one dtype keeps the given order. Larger items first keeps all of them aligned.
    for tensor in sorted(tensors, key=lambda t: -t.dtype.itemsize):
        header[tensor.name] = {
            "dtype": DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    offsets = {tensor.name: start + header[tensor.name]["data_offsets"][0] for tensor in tensors}
    return len(text).to_bytes(8, "little") + text, offsets, start + at
