"""Passthrough: the one input, optionally scaled; for stacks of layers."""

from __future__ import annotations

from torch import Tensor

from regraft.merge.methods.parameter import PerInput
from regraft.merge.methods.registry import method


@method("passthrough", paper="none: a copy", base="ignored", inputs=(1, 1))
def passthrough(
    tensors: list[Tensor], base: None, *, scale: PerInput[float | None] = (None,)
) -> Tensor:
    """The input, times `scale` if that is given."""
    factor = scale[0]
    return tensors[0] if factor is None else tensors[0] * factor
