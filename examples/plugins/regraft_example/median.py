"""The merge method `example_median`: the base plus the median of the inputs' differences from it.

In a recipe:

    merge_method: example_median
    base_model: base
    parameters: {scale: 1.0}
    models: [{model: one}, {model: two}, {model: three}]
"""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.merge.methods import method


@method("example_median", paper="none", base="required", inputs=(2, None), symmetric=True)
def median(tensors: list[Tensor], base: Tensor | None, *, scale: float = 1.0) -> Tensor:
    """base + scale * median(input - base), element by element."""
    assert base is not None
    middle = torch.stack([tensor - base for tensor in tensors]).quantile(0.5, dim=0)
    return middle.mul_(scale).add_(base)
