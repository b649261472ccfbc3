"""The head of a GGUF file (metadata and tensor table) and the offsets of its tensors.

The head is made by the `gguf` package, an optional dependency. Tensors are written by
`checkpoint.write.sink`, at the offsets given here, so that they are streamed and resumable.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regraft.checkpoint.write.shard_plan import PlannedTensor
from regraft.errors import InputError

_ALIGNMENT = 32
_NUMPY = {torch.float16: np.float16, torch.float32: np.float32}
_FILE_TYPES = {torch.float32: 0, torch.float16: 1}


def require_gguf() -> Any:
    """The gguf package. Raises InputError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise InputError(
            "Writing GGUF needs the package gguf; install it with: pip install 'regraft[gguf]'"
        ) from None
    return gguf


def file_type(dtype: torch.dtype) -> int:
    """llama.cpp's number for a file whose matrices have this dtype."""
    return _FILE_TYPES[dtype]


def lay_out(
    tensors: list[PlannedTensor], path: Path, architecture: str, describe: Callable[[Any], None]
) -> tuple[bytes, dict[str, int], int]:
    """(head, absolute offset of each tensor, size of the file) of a GGUF file.

    path: a scratch file for the head. describe: adds the metadata to a `gguf.GGUFWriter`. Shapes
    are torch's; GGUF lists them in reverse order.
    """
    writer = require_gguf().GGUFWriter(path, architecture)
    describe(writer)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(_NUMPY[tensor.dtype]), tensor.nbytes
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    head = path.read_bytes()
    head += bytes(-len(head) % _ALIGNMENT)
    offsets, at = {}, len(head)
    for tensor in tensors:
        offsets[tensor.name] = at
        at += tensor.nbytes + -tensor.nbytes % _ALIGNMENT
    return head, offsets, at
