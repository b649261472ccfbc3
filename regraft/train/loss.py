"""Cross-entropy without the logits: never more than `chunk` tokens of them exist.

128k tokens of Llama 3 would be 63 GB of float32 logits. Each chunk's head product and softmax are
recomputed in the backward pass. `F.linear_cross_entropy` saves the same memory, but in bfloat16 it
reports a wrong loss (torch 2.13: 9.875 for 9.335).

Labels are already shifted: label i is the token after token i, made before a sequence is cut into
shards, where neighbours part. `IGNORED` marks tokens without one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = -100
Head = Callable[[Tensor], Tensor]


def nll_sum(hidden: Tensor, head: Head, labels: Tensor, chunk: int) -> Tensor:
    """Summed NLL in nats, a float32 scalar (float64 for float64 input), with gradient.

    hidden [..., d], labels [...]; head maps [n, d] to logits [n, vocabulary]. Divide by the number
    of valid labels over all devices and micro-batches, not by this chunk's.
    """
    flat, wanted = hidden.flatten(0, -2), labels.flatten()
    total = flat.new_zeros((), dtype=_wide(flat.dtype))
    # split, not sliced: each slice's gradient would be as large as all of them
    for part, label in zip(flat.split(chunk), wanted.split(chunk), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(_chunk_sum, part, label, head, use_reentrant=False)
        else:
            total = total + _chunk_sum(part, label, head)
    return total


def kl_sum(
    hidden: Tensor, head: Head, wanted: Tensor, wanted_head: Head, labels: Tensor, chunk: int
) -> Tensor:
    """Summed KL(wanted || ours) in nats over tokens that have a label, with gradient in ours.

    hidden, wanted [..., d]: last hidden states, to be read by head and wanted_head.
    """
    ours, theirs, valid = hidden.flatten(0, -2), wanted.flatten(0, -2), labels.flatten() != IGNORED
    total = ours.new_zeros((), dtype=_wide(ours.dtype))
    for parts in zip(*(each.split(chunk) for each in (ours, theirs, valid)), strict=True):
        total = total + checkpoint(_chunk_kl, *parts, head, wanted_head, use_reentrant=False)
    return total


def _chunk_kl(ours: Tensor, theirs: Tensor, valid: Tensor, head: Head, other: Head) -> Tensor:
    q = head(ours)
    q = q.to(_wide(q.dtype)).log_softmax(-1)
    with torch.no_grad():
        p = other(theirs).to(q.dtype).log_softmax(-1)
    return ((p.exp() * (p - q)).sum(-1) * valid).sum()


@torch.no_grad()
def token_scores(hidden: Tensor, head: Head, labels: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """(NLL, 1 where the label is the likeliest token), each [...] like labels; 0 where ignored."""
    flat, wanted = hidden.flatten(0, -2), labels.flatten()
    scores, hits = [], []
    for part, label in zip(flat.split(chunk), wanted.split(chunk), strict=True):
        logits = head(part)
        logits = logits.to(_wide(logits.dtype))
        scores.append(F.cross_entropy(logits, label, ignore_index=IGNORED, reduction="none"))
        hits.append((logits.argmax(-1) == label).to(logits.dtype))
    return torch.cat(scores).view_as(labels), torch.cat(hits).view_as(labels)


def _chunk_sum(part: Tensor, label: Tensor, head: Head) -> Tensor:
    logits = head(part)
    return F.cross_entropy(
        logits.to(_wide(logits.dtype)), label, ignore_index=IGNORED, reduction="sum"
    )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
