"""The dtypes of weights."""

from __future__ import annotations

import torch

# Stored weights that are numbers, not codes of a quantisation.
FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# What an output can be stored as, by the name that options and recipes have for it.
OUTPUT_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def dtype_name(dtype: torch.dtype) -> str:
    """'bfloat16' for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
