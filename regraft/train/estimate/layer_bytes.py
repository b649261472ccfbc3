"""Peaks of memory within the backward pass of one recomputed decoder layer.

With d the hidden size, q that of all queries, k that of keys, as of values, m the MLP's width and
bfloat16 arithmetic, bytes of each token:

    MLP, all at once           14.1 d + 4 q + 5 k + 12 m
    MLP, in tiles              16.1 d + 4 q + 5 k + f (4 d + 12 m), f the share of a tile's tokens
    norm before the MLP        31.9 d + 4 q + 6 k
    rotation in attention       9.9 d + 14 q + 6 k

With fused_norms the MLP takes 6 d less (4 d with offload), the rotation 4 d, and the norm sets no
peak; with offload the rotation takes 2 d more: the input of the layer before has been fetched. With
fused_swiglu the MLP takes 8 m in place of 12 m; fused_rope changes no peak of the backward pass.
Norms of queries and keys, as in Qwen3, save 4 (q + k) more, 2 (q + k) with fused_norms; without it
the backward pass of the queries' norm takes 10 d + 24 q. Norms that are trained and not fused also
save their results, 2 bytes of each number. Of each parameter that is trained in the layer, 7 bytes
where gradients are summed over processes: its gradients in bfloat16 and float32 on their way; in a
tiled MLP 12, with the sums over tiles.

Counted by `trace` for layers of Llama-3-8B and 70B, of Qwen3-8B, and with other q, k and m.
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
    hidden: int, queries: int, keys: int, intermediate: int,
    *, query_norms: bool, tile: float, trained_norms: bool, fused_norms: bool, fused_swiglu: bool,
    offload: bool,
) -> list[Peak]:  # fmt: skip
    """The peaks of a layer of these sizes, of which the largest counts. query_norms: whether there
    are norms of queries and keys. tile: share of the tokens in a tile of the MLP, 0 without tiles.
    """
    fetched = 2 if offload else 0
    norm = 6 - fetched if fused_norms else 0
    wide = (8 if fused_swiglu else 12) * intermediate
    result = 2 if trained_norms and not fused_norms else 0
    saved = 4 * queries + 5 * keys + result * hidden  # the first norm's
    if query_norms:
        saved += (result + (2 if fused_norms else 4)) * (queries + keys)
    rotation = 9.9 + fetched - (4 if fused_norms else 0)
    in_attention = rotation * hidden + saved + 10 * queries + keys
    if not fused_norms:
        in_attention = max(in_attention, 31.9 * hidden + saved + keys)
        if query_norms:
            in_attention = max(in_attention, (10 + fetched + result) * hidden + 24 * queries)
    saved += result * hidden  # the second norm's
    in_mlp = (14.1 - norm) * hidden + saved + wide
    if not 0 < tile < 1:
        return [Peak(max(in_attention, in_mlp), 7)]
    in_tile = (16.1 - norm) * hidden + saved + tile * (4 * hidden + wide)
    return [Peak(in_attention, 7), Peak(min(in_tile, in_mlp), 12)]
