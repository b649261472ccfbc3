"""The header of a safetensors file, with every number in it checked.

The format: 8 bytes little-endian header length, a JSON header, the data
(https://huggingface.co/docs/safetensors). We read it ourselves because we need absolute offsets,
and errors that say what to do.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from regraft.errors import CheckpointError
from regraft.input_files import open_file, parse_json

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
DTYPE_CODES: dict[torch.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a shard file. offset: from the start of the file; nbytes: its size there."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    shard: str
    offset: int
    nbytes: int


def parse_header(
    shard: str, head: bytes, size: int, *, where: str, remedy: str = "download it again"
) -> tuple[list[TensorInfo], dict[str, str]]:
    """The tensors of a shard in the order of their offsets, and its `__metadata__`.

    head: the first bytes, at least 8 and the header, or the whole file if it is shorter. size: of
    the file, in bytes. Raises CheckpointError, ending in `remedy`, where tensors do not fill the
    file exactly or have a dtype that regraft does not read.
    """
    path = f"{where}/{shard}"

    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{path} is not a valid safetensors file: {what}; {remedy}.")

    def truncated(promised: int) -> CheckpointError:
        return CheckpointError(
            f"{path} is truncated: its header promises {promised} bytes and {size} are there; "
            f"{remedy}."
        )

    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); {remedy}.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`.")
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or length > MAX_HEADER:
        raise bad("it does not begin with the length of a header")
    if 8 + length > size:
        raise truncated(8 + length)
    header = parse_json(
        head[8 : 8 + length], f"The header of {path}", CheckpointError, remedy=remedy
    )
    if not isinstance(header, dict):
        raise bad("its header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise bad("its __metadata__ is not a map of strings")
    infos = []
    for name, entry in header.items():
        try:
            code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [begin, end, *shape]
        except (KeyError, TypeError, ValueError) as error:
            raise bad(f"tensor '{name}' lacks dtype, shape or data_offsets") from error
        if any(type(number) is not int or number < 0 for number in numbers):
            raise bad(f"shape or offsets of tensor '{name}' are not whole numbers")
        if not isinstance(code, str) or code not in DTYPES:
            raise CheckpointError(
                f"Tensor '{name}' in {path} has dtype {code}, which regraft does not read; use a "
                "checkpoint that is not packed or quantised."
            )
        dtype = DTYPES[code]
        if end - begin != prod(shape) * dtype.itemsize:
            raise bad(
                f"tensor '{name}' of shape {shape} and dtype {code} cannot fill {end - begin} bytes"
            )
        offset = 8 + length + begin
        infos.append(TensorInfo(name, tuple(shape), dtype, shard, offset, end - begin))
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    position = 8 + length
    for info in infos:
        if info.offset != position:
            kind = "overlap" if info.offset < position else "leave a hole"
            raise bad(f"the bytes of tensor '{info.name}' and the one before it {kind}")
        position += info.nbytes
    if position > size:
        raise truncated(position)
    if position < size:
        raise bad(f"{size - position} bytes follow its last tensor")
    return infos, metadata


def local_head(path: Path) -> tuple[bytes, int]:
    """(first bytes, file size) of a shard on disk, as `parse_header` takes them."""
    with open_file(path, CheckpointError) as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        head = os.pread(fd, 8, 0)
        length = int.from_bytes(head, "little")
        if length <= min(MAX_HEADER, size):
            head += os.pread(fd, length, 8)
        elif head.startswith(b"version "):
            head += os.pread(fd, 100, 8)
        return head, size
