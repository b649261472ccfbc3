"""Intruder directions: leading singular vectors of a changed weight that the original has not.

Of W' = W + D, take the `DIRECTIONS` leading left singular vectors; one whose |cosine| with each of
the `AGAINST` leading left ones of W is below `THRESHOLD` is an intruder. Fine-tuning by LoRA makes
many, full fine-tuning few, and those with many forget more (Shuttleworth and others, arXiv
2410.21228). The paper compares with all singular vectors of W, which takes a whole SVD; with the
leading ones alone a vector that W has further down counts as an intruder too, so the number here is
an upper bound on the paper's. Singular values that are close to each other have no stable vectors:
a flat spectrum has intruders after any change.
"""

from __future__ import annotations

from torch import Tensor

from regraft.device import fast_bfloat16
from regraft.lowrank.svd import truncated_svd

DIRECTIONS = 10
AGAINST = 64
THRESHOLD = 0.5


def closest_cosines(before: Tensor, after: Tensor) -> list[float]:
    """For each leading left singular vector of `after`, its largest |cosine| with one of `before`.

    before, after: (m, n) float32, finite. At most `DIRECTIONS` numbers, fewer for a small matrix.
    """
    vectors = [
        _leading(matrix, count) for matrix, count in ((before, AGAINST), (after, DIRECTIONS))
    ]
    if not all(part.shape[1] for part in vectors):
        return []  # a matrix of zeros has no directions
    return [float(value) for value in (vectors[0].T @ vectors[1]).abs().amax(0).clamp(max=1)]


def _leading(matrix: Tensor, count: int) -> Tensor:
    half = matrix.bfloat16() if fast_bfloat16(matrix.device) else None
    return truncated_svd(matrix, count, half=half, certify=False).U
