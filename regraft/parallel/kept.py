"""A layer's attention, computed once although the layer is recomputed in the backward pass.

Kept are the output and its log-sum-exp, which is all that the backward needs beside q, k and v: for
Llama-3-8B in bfloat16 8,320 bytes a token and layer, as much as the layer's input. What is not
repeated is the largest part of a long row's recomputation, and over several processes its messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Result = tuple[Tensor, Tensor]
"""(out, lse)."""


class KeptAttention:
    """The result of one layer's attention between its forward pass and its recomputation.

    pack, unpack: what to do with a tensor that has to wait, such as to send it to the host.
    """

    def __init__(
        self,
        pack: Callable[[Tensor], Any] = lambda tensor: tensor,
        unpack: Callable[[Any], Tensor] = lambda tensor: tensor,
    ) -> None:
        self._pack, self._unpack = pack, unpack
        self._waiting: list[Any] = []

    def __call__(self, compute: Callable[[], Result]) -> Result:
        """compute() the first time, which is the forward pass; the same tensors the second time."""
        if self._waiting:
            out, lse = (self._unpack(handle) for handle in self._waiting)
            self._waiting.clear()
            return out, lse
        result = compute()
        self._waiting += [self._pack(tensor.detach()) for tensor in result]
        return result
