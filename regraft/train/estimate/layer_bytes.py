"""Peaks of memory within the backward pass of one recomputed decoder layer.

With d the hidden size, k that of keys and values, m the MLP's width and bfloat16 arithmetic, bytes
of each token:

    all at once                35.6 d + 5 k + 7 m
    tiled MLP, in attention    35.9 d + 6 k
    tiled MLP, in the MLP      20.1 d + 5 k + f (4 d + 12 m), f the share of the tokens in a tile

With fused_norms that in attention is 16 d less, the others 6 d; with offload 14 and 4 d, since the
input of the layer before has been fetched by then. Of each parameter that is trained in the layer,
7 bytes where gradients are summed over processes: its gradients in bfloat16 and float32 on their
way; in a tiled MLP 12, with the sums over tiles.

Counted by `trace` for layers of Llama-3-8B and 70B and of Qwen3-8B, whose attention takes 5 d more
for the norms of queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """token: bytes of each token of the device; trained: of each trained parameter of the layer,
    among several processes."""

    token: float
    trained: float


def backward_peaks(
    hidden: int, kv: int, intermediate: int, *, tile: float, fused_norms: bool, offload: bool
) -> list[Peak]:
    """The peaks of a layer of these sizes, of which the largest counts. tile: share of the tokens
    in a tile of the MLP, 0 without tiles."""
    fetched = 2 if offload else 0
    norm = 6 - fetched if fused_norms else 0
    whole = (35.6 - norm) * hidden + 5 * kv + 7 * intermediate
    if not 0 < tile < 1:
        return [Peak(whole, 7)]
    in_attention = 35.9 * hidden + 6 * kv
    if fused_norms:
        in_attention -= (16 - fetched) * hidden
    in_mlp = (20.1 - norm) * hidden + 5 * kv + tile * (4 * hidden + 12 * intermediate)
    return [Peak(min(in_attention, whole), 7), Peak(min(in_mlp, whole), 12)]
