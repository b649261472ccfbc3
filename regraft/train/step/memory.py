"""What a long sequence costs, made smaller: recomputed layers, inputs kept on the host, tiled MLP.

Of each recomputed layer only its input survives the forward pass: 8 KiB a token for Llama-3-8B,
256 KiB over its layers. With `offload` that waits in pinned host memory, copied on a stream of its
own and fetched one layer ahead. "Arctic Long Sequence Training" (arXiv 2506.13996) describes the
same three measures. None of them changes a bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

_PIECE = 1 << 26  # bytes


def save_memory(
    layers: Iterable[nn.Module], *, recompute: bool, offload: bool, tile: int
) -> HostStore | None:
    """Wrap the decoder layers of a transformers model in place; the store where they offload.

    tile: tokens of the MLP at a time, 0 for all at once. Forwards are wrapped, not calls, so that
    hooks on the modules (FSDP's) stay outside.
    """
    store = HostStore() if offload and recompute else None
    for layer in layers:
        if tile:
            mlp: Any = layer.mlp
            mlp.forward = _tiled(mlp.forward, tile)
        if recompute:
            layer.forward = _recomputed(layer.forward, store)
    return store


def _recomputed(forward: Callable[..., Any], store: HostStore | None) -> Callable[..., Any]:
    def run(hidden_states: Tensor, **rest: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(hidden_states, **rest)
        if store is None:
            return checkpoint(forward, hidden_states, use_reentrant=False, **rest)
        with saved_tensors_hooks(store.pack, store.unpack):
            return checkpoint(forward, hidden_states, use_reentrant=False, **rest)

    return run


def _tiled(forward: Callable[[Tensor], Tensor], tile: int) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        if x.shape[1] <= tile:
            return forward(x)
        parts = x.split(tile, 1)
        if not torch.is_grad_enabled():
            return torch.cat([forward(part) for part in parts], 1)
        return torch.cat([checkpoint(forward, part, use_reentrant=False) for part in parts], 1)

    return run


class HostStore:
    """Layer inputs in host memory between forward and backward.

    On CUDA, copies go over a stream of their own into pinned buffers that are used again, and the
    input of layer i - 1 is fetched while layer i recomputes. Elsewhere they are plain copies.
    `moved`: bytes sent to the host so far.
    """

    def __init__(self) -> None:
        self.moved = 0
        self._kept: dict[int, tuple[Tensor | list[Tensor], torch.Size, torch.device]] = {}
        self._fetched: dict[int, Tensor] = {}
        self._next = 0
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        self._stream: torch.cuda.Stream | None = None

    def pack(self, tensor: Tensor) -> int | Tensor:
        """Send a tensor away; what to ask for it with."""
        if tensor.numel() == 0:  # the placeholder of torch's checkpoint
            return tensor
        self.moved += tensor.numel() * tensor.element_size()
        self._next += 1
        kept = self._send(tensor.detach()) if tensor.is_cuda else tensor.detach().clone()
        self._kept[self._next] = kept, tensor.shape, tensor.device
        return self._next

    def unpack(self, handle: int | Tensor) -> Tensor:
        """Bring it back; the one packed before it starts on its way."""
        if isinstance(handle, Tensor):
            return handle
        found = self._fetched.pop(handle, None)
        if found is None:
            found = self._fetch(handle)
        kept, _, _ = self._kept.pop(handle)
        if isinstance(kept, list):
            # the stream that computes now, which under FSDP is not always the default one
            torch.cuda.current_stream().wait_stream(self._side())
            found.record_stream(torch.cuda.current_stream())
            for piece in kept:
                self._free.setdefault((piece.numel(), piece.dtype), []).append(piece)
            before = handle - 1
            if before in self._kept and before not in self._fetched:
                self._fetched[before] = self._fetch(before)
        return found

    def _side(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        return self._stream

    def _send(self, tensor: Tensor) -> list[Tensor]:
        side = self._side()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            pieces = to_pieces(tensor, self._buffer)
        tensor.record_stream(side)
        return pieces

    def _buffer(self, like: Tensor) -> Tensor:
        free = self._free.get((like.numel(), like.dtype))
        return free.pop() if free else torch.empty_like(like, device="cpu", pin_memory=True)

    def _fetch(self, handle: int) -> Tensor:
        kept, shape, device = self._kept[handle]
        if isinstance(kept, Tensor):
            return kept
        with torch.cuda.stream(self._side()):
            return from_pieces(kept, shape, device)


def to_pieces(tensor: Tensor, buffer: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """A copy in flat pieces of at most 64 MiB, each in what `buffer` gives for it.

    torch rounds a pinned allocation up to a power of two: in one piece, 4.1 GiB would take 8.
    """
    pieces = []
    for part in tensor.reshape(-1).split(_PIECE // tensor.element_size()):
        pieces.append(buffer(part))
        pieces[-1].copy_(part, non_blocking=True)
    return pieces


def from_pieces(pieces: list[Tensor], shape: torch.Size, device: torch.device) -> Tensor:
    """The tensor again, on `device`."""
    found = torch.empty(shape, dtype=pieces[0].dtype, device=device)
    flat = found.view(-1).split([piece.numel() for piece in pieces])
    for part, piece in zip(flat, pieces, strict=True):
        part.copy_(piece, non_blocking=True)
    return found
