"""Random numbers that are a function of the element, not of the sequence of calls.

An element's number is a hash of (seed, input, row, column), so it is the same for any block size,
order, number of threads and device. SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) gives the row's
64-bit key, and MurmurHash3's finaliser over the column the element's bits; one half of the key is
mixed in before its first multiplication and the other before its second.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 2**64
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_A, _MIX_B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MURMUR_A, _MURMUR_B = 0x85EBCA6B, 0xC2B2AE35


def uniform(
    seed: int, stream: int, first_row: int, shape: tuple[int, int], device: torch.device
) -> Tensor:
    """(rows, columns) float32 in [0, 1), multiples of 2^-24, for rows `first_row` and on of the
    tensor with this seed; `stream` is the number of the input."""
    rows, columns = shape
    key = _split_mix(_split_mix(seed % _WORD) + stream)
    row = torch.arange(first_row, first_row + rows, dtype=torch.int64, device=device)
    keys = _split_mix_rows(row * _signed(_GOLDEN, 64) + _signed(key, 64))
    low, high = keys.to(torch.int32)[:, None], (keys >> 32).to(torch.int32)[:, None]
    bits = torch.arange(columns, dtype=torch.int32, device=device) ^ low
    bits ^= (bits >> 16).bitwise_and_(2**16 - 1)  # shifts of int32 are arithmetic, hence the masks
    bits *= _signed(_MURMUR_A, 32)
    bits += high
    bits ^= (bits >> 13).bitwise_and_(2**19 - 1)
    bits *= _signed(_MURMUR_B, 32)
    bits ^= (bits >> 16).bitwise_and_(2**16 - 1)
    return bits.bitwise_right_shift_(8).to(torch.float32).mul_(2**-24).add_(0.5)


def _split_mix(x: int) -> int:
    x = (x + _GOLDEN) % _WORD
    x = (x ^ (x >> 30)) * _MIX_A % _WORD
    x = (x ^ (x >> 27)) * _MIX_B % _WORD
    return x ^ (x >> 31)


def _split_mix_rows(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, which wraps as uint64 does."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(_MIX_A, 64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(_MIX_B, 64)
    return x ^ ((x >> 31) & (2**33 - 1))


def _signed(x: int, bits: int) -> int:
    return x - 2**bits if x >= 2 ** (bits - 1) else x
