"""A layer's attention, computed once although the layer is recomputed in the backward pass.

Saved between the two are the output [B, H, s, D] and its log-sum-exp [B, H, s]; with q, k and v,
which the recomputation makes again, they are all that the backward pass of attention needs. For
Llama-3-8B in bfloat16 they take 8,320 bytes a token and layer, 8,192 of them for the output, which
is as large as the layer's input. Attention is the largest part of a long row's recomputation, and
over several processes the only one with messages. "DISTFLASHATTN" (arXiv 2310.03294) calls this
rematerialization-aware checkpointing and moves the checkpoint to the end of attention; here it
stays at the layer's input, and the recomputed layer receives the saved result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Result = tuple[Tensor, Tensor]
"""(out [B, H, s, D], lse [B, H, s])."""


class KeptAttention:
    """The result of one layer's attention between its forward pass and its recomputation.

    pack, unpack: called on each tensor before and after it waits, such as to move it to the host.
    """

    def __init__(
        self,
        pack: Callable[[Tensor], Any] = lambda tensor: tensor,
        unpack: Callable[[Any], Tensor] = lambda tensor: tensor,
    ) -> None:
        self._pack, self._unpack = pack, unpack
        self._waiting: list[Any] = []

    def __call__(self, compute: Callable[[], Result]) -> Result:
        """compute() in the first call, the forward pass; in the second its result, which is then
        released."""
        if self._waiting:
            out, lse = (self._unpack(handle) for handle in self._waiting)
            self._waiting.clear()
            return out, lse
        result = compute()
        self._waiting += [self._pack(tensor.detach()) for tensor in result]
        return result
