"""Which elements of a tensor stand for all of it in a fingerprint or a comparison."""

from __future__ import annotations

import random

_SAMPLE_BLOCKS, _SAMPLE_BLOCK = 16, 64


def sample_blocks(count: int) -> list[tuple[int, int]]:
    """Element ranges [start, stop) that stand for a tensor of `count` elements.

    The whole tensor up to 1024 elements, else 16 blocks of 64: one in each sixteenth, at an offset
    drawn from a generator seeded with `count`, so tensors of one size are sampled alike.
    """
    if count <= _SAMPLE_BLOCKS * _SAMPLE_BLOCK:
        return [(0, count)]
    draw = random.Random(count)
    blocks = []
    for i in range(_SAMPLE_BLOCKS):
        first = i * count // _SAMPLE_BLOCKS
        last = (i + 1) * count // _SAMPLE_BLOCKS - _SAMPLE_BLOCK
        start = first + int(draw.random() * (last - first + 1))
        blocks.append((start, start + _SAMPLE_BLOCK))
    return blocks
