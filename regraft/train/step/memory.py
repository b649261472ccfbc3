"""Memory savers for long sequences: recomputed layers, layer inputs on the host, a tiled MLP.

Of each recomputed layer only its input [B, s, d] survives the forward pass: 8 KiB a token for
Llama-3-8B, 256 KiB over its layers; as much again with keep_attention, by which attention is not
computed twice (`parallel.kept_attention`). With `offload` both wait in pinned host memory, copied
on a stream of their own and fetched one layer ahead. Those of the last two layers stay on the
device: the backward pass begins with the last layer and fetches the one before, so the peak is the
same. "Arctic Long Sequence Training" (arXiv 2506.13996) describes all of them except
keep_attention. The place where inputs wait changes no bit of the result; tiles may, because a GPU
adds up a smaller product in another order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from regraft.parallel.kept_attention import KeptAttention
from regraft.parallel.shards import KEY
from regraft.train.step.tiles import tile_mlp

_PIECE = 1 << 26  # bytes
RESIDENT = 2  # last layers, of which `offload` moves nothing


def save_memory(
    layers: Iterable[nn.Module],
    *,
    recompute: bool,
    offload: bool = False,
    keep_attention: Callable[[], bool] = lambda: False,
    tile: int = 0,
) -> HostStore | None:
    """Wrap the decoder layers of a transformers model in place. Returns the store if they offload.

    offload, keep_attention (called in every forward pass): of recomputed layers. tile: tokens of
    the MLP at a time, 0 for all at once. Forwards are replaced, so hooks on the modules (FSDP's)
    stay outside.
    """
    store, layers = HostStore() if offload and recompute else None, list(layers)
    for number, layer in enumerate(layers):
        if tile:
            mlp: Any = layer.mlp
            tile_mlp(mlp, tile)
        if recompute:
            stays = number >= len(layers) - RESIDENT
            layer.forward = _recomputed(layer.forward, store, keep_attention, stays)
    return store


def _recomputed(
    forward: Callable[..., Any],
    store: HostStore | None,
    keep_attention: Callable[[], bool],
    stays: bool,
) -> Callable[..., Any]:
    def run(hidden_states: Tensor, **rest: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(hidden_states, **rest)
        if keep_attention():
            kept = KeptAttention()
            if store is not None:
                kept = KeptAttention(partial(store.pack_more, stays=stays), store.unpack)
            rest[KEY] = replace(rest[KEY], kept=kept)
        if store is None:
            return checkpoint(forward, hidden_states, use_reentrant=False, **rest)
        with saved_tensors_hooks(partial(store.pack, stays=stays), store.unpack):
            return checkpoint(forward, hidden_states, use_reentrant=False, **rest)

    return run


class HostStore:
    """Layer inputs, and what else belongs to a layer, in host memory between forward and backward.

    On CUDA, copies go over a stream of their own into pinned buffers that are reused, and the
    tensors of layer i - 1 are fetched while layer i recomputes. Elsewhere they are plain copies.

    Device memory is freed in the order of the computing stream, so that the host may run ahead of
    the GPU: a tensor is held until that stream has a wait for its copy, and fetched tensors are
    allocated by that stream. `record_stream` would free a block only once the host sees
    the copy finished; until then nothing could be reused (32 inputs of 16 MiB took 1,040 MiB
    where 48 suffice). `moved`: bytes sent to the host so far.
    """

    def __init__(self) -> None:
        self.moved = 0
        self._stored: dict[int, _Stored] = {}
        self._sending: deque[tuple[Tensor, Any]] = deque()
        self._fetched: dict[int, tuple[Tensor, Any]] = {}
        self._last = self._layer = 0
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        self.copies: CopyStream | None = None
        """What copies tensors on CUDA, made for the first one; a trace sets its own."""

    def __len__(self) -> int:
        """Tensors on the host, and those that stay on the device."""
        return len(self._stored)

    def pack(self, tensor: Tensor, stays: bool = False) -> int | Tensor:
        """Send the input of a layer to the host, unless it `stays` where it is; the handle by which
        `unpack` returns it."""
        if tensor.numel() == 0:  # the placeholder of torch's checkpoint
            return tensor
        self._layer = self._last + 1
        return self.pack_more(tensor, stays)

    def pack_more(self, tensor: Tensor, stays: bool = False) -> int:
        """The same for another tensor of the layer whose input was packed last."""
        self._last += 1
        strides = tensor.stride()
        axes = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
        dense = tensor.detach().permute(axes)  # contiguous where memory is dense in another order
        if self.copies is None and tensor.is_cuda:
            self.copies = CopyStream()
        data: Tensor | list[Tensor] = dense
        if stays:
            if self.copies is not None:  # nothing is sent after this
                self._release_sent(self.copies, 0)
        else:
            self.moved += tensor.numel() * tensor.element_size()
            data = dense.clone() if self.copies is None else self._send(dense, self.copies)
        self._stored[self._last] = _Stored(data, axes, dense.shape, tensor.device, self._layer)
        return self._last

    def unpack(self, handle: int | Tensor) -> Tensor:
        """Bring a tensor back; the rest of its layer and the layer before it are on their way."""
        if isinstance(handle, Tensor):
            return handle
        if self.copies is not None:
            self._release_sent(self.copies, 0)
        ahead = self._fetched.pop(handle) if handle in self._fetched else None
        result, arrival = ahead or self._fetch(handle)
        stored = self._stored.pop(handle)
        if self.copies is not None:
            if arrival is not None:
                self.copies.wait(arrival)
            for piece in stored.data if isinstance(stored.data, list) else ():
                self._free.setdefault((piece.numel(), piece.dtype), []).append(piece)
            before = self._stored.get(stored.layer - 1)  # the last tensor of the layer before
            for layer in [stored.layer] + ([before.layer] if before else []):
                for other in [i for i, one in self._stored.items() if one.layer == layer]:
                    if other not in self._fetched:
                        self._fetched[other] = self._fetch(other)
        inverse = sorted(range(len(stored.axes)), key=stored.axes.__getitem__)
        return result.permute(inverse)

    def _send(self, tensor: Tensor, copies: CopyStream) -> list[Tensor]:
        self._release_sent(copies, 1)
        with copies.after_compute():
            pieces = to_pieces(tensor, self._buffer)
            self._sending.append((tensor, copies.event()))
        return pieces

    def _release_sent(self, copies: CopyStream, keep: int) -> None:
        """Let go of all but the last `keep` tensors sent, once the computing stream waits for their
        copies: what it allocates after that may use their memory."""
        while len(self._sending) > keep:
            copies.wait(self._sending[0][1])
            self._sending.popleft()

    def _buffer(self, like: Tensor) -> Tensor:
        free = self._free.get((like.numel(), like.dtype))
        if free:
            return free.pop()
        assert self.copies is not None
        return self.copies.host_memory(like)

    def _fetch(self, handle: int) -> tuple[Tensor, Any]:
        """The tensor in the order of its memory, and what to wait for before it is read."""
        stored = self._stored[handle]
        if isinstance(stored.data, Tensor):
            return stored.data, None
        assert self.copies is not None
        result = torch.empty(stored.shape, dtype=stored.data[0].dtype, device=stored.device)
        with self.copies.after_compute():  # what used this memory before is done
            copy_pieces(stored.data, result)
            return result, self.copies.event()


class CopyStream:
    """A CUDA stream for copies between the current GPU and pinned host memory."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    @contextmanager
    def after_compute(self) -> Iterator[None]:
        """Copies inside run on this stream, after what is queued on the computing stream now."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def event(self) -> torch.cuda.Event:
        """An event after all copies so far, for `wait`."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, event: torch.cuda.Event) -> None:
        """Make the computing stream, which under FSDP is not always the default one, wait."""
        torch.cuda.current_stream().wait_event(event)

    def host_memory(self, like: Tensor) -> Tensor:
        """Pinned memory of the shape and type of `like`."""
        return torch.empty_like(like, device="cpu", pin_memory=True)


@dataclass(frozen=True)
class _Stored:
    """A tensor on the host, in pieces where it came from a GPU, or one that stays. axes: of the
    tensor, in the order of its memory; shape: in that order; layer: the handle of its layer's
    input."""

    data: Tensor | list[Tensor]
    axes: list[int]
    shape: torch.Size
    device: torch.device
    layer: int


def to_pieces(tensor: Tensor, buffer: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """A copy in flat pieces of at most 64 MiB, each in what `buffer` gives for it.

    torch rounds a pinned allocation up to a power of two: in one piece, 4.1 GiB would take 8.
    """
    pieces = []
    for part in tensor.reshape(-1).split(_PIECE // tensor.element_size()):
        pieces.append(buffer(part))
        pieces[-1].copy_(part, non_blocking=True)
    return pieces


def copy_pieces(pieces: list[Tensor], target: Tensor) -> None:
    """Fill the contiguous tensor `target` with what `to_pieces` cut."""
    parts = target.view(-1).split([piece.numel() for piece in pieces])
    for part, piece in zip(parts, pieces, strict=True):
        part.copy_(piece, non_blocking=True)
