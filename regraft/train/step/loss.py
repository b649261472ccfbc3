"""Cross-entropy in chunks: logits exist for at most `chunk` tokens at a time.

128k tokens of Llama 3 would be 63 GB of float32 logits. A plain linear head's gradients are made
along with the loss, a chunk at a time, as in Liger (arXiv 2410.10989), and summed in float32:
autograd would add up a bfloat16 weight's in bfloat16. Other heads are recomputed in the backward
pass. `F.linear_cross_entropy` saves the same memory, but in bfloat16 it reports a wrong loss
(torch 2.13: 9.875 for 9.335).

Labels are already shifted: label i is the token after token i, which after a sequence is cut may be
on another rank. `IGNORED` marks tokens without one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from regraft.data.batch import IGNORED
from regraft.parallel.kernels.kernel import accumulator

Head = Callable[[Tensor], Tensor]


def nll_sum(hidden: Tensor, head: Head, labels: Tensor, chunk: int) -> Tensor:
    """Summed NLL in nats, a float32 scalar (float64 for float64 input), with gradient.

    hidden [..., d], labels [...]; head maps [n, d] to logits [n, vocabulary]. Divide by the number
    of valid labels over all devices and micro-batches, not by this chunk's.
    """
    flat, targets = hidden.flatten(0, -2), labels.flatten()
    grad = torch.is_grad_enabled()
    if grad and type(head) is nn.Linear and head.bias is None:
        return _HeadLoss.apply(flat, head.weight, targets, chunk)
    total = flat.new_zeros((), dtype=accumulator(flat.dtype))
    # split, not sliced: each slice's gradient would be as large as all of them
    for part, label in zip(flat.split(chunk), targets.split(chunk), strict=True):
        if grad:
            total = total + checkpoint(_chunk_sum, part, label, head, use_reentrant=False)
        else:
            total = total + _chunk_sum(part, label, head)
    return total


class _HeadLoss(torch.autograd.Function):
    """nll_sum of a linear head. The forward pass computes the gradients too, up to the factor that
    backward receives."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
        kind = flat.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else flat.dtype
        used, wide = weight.to(narrow), accumulator(narrow)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        of_hidden = torch.empty_like(flat) if needs_hidden else None
        of_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        total = flat.new_zeros((), dtype=wide)
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(labels), chunk):
                span = slice(start, start + chunk)
                part, label = flat[span].to(narrow), labels[span]
                valid = label != IGNORED
                log_p = F.linear(part, used).to(wide).log_softmax(-1)
                right = label.where(valid, 0)[:, None]
                total -= (log_p.gather(1, right)[:, 0] * valid).sum()
                if of_hidden is None and of_weight is None:
                    del log_p
                    continue
                slope = log_p.exp_().scatter_add_(1, right, -torch.ones_like(right, dtype=wide))
                del log_p  # or it is there beside the next chunk's
                slope, valid = slope.to(narrow), valid[:, None]
                if of_hidden is not None:
                    torch.mul(slope @ used, valid, out=of_hidden[span])
                if of_weight is not None:
                    of_weight += slope.T @ (part * valid)
                del slope
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        of_hidden, of_weight = ctx.saved_tensors
        if of_hidden is not None:
            of_hidden = (of_hidden * above).to(of_hidden.dtype)
        if of_weight is not None:
            of_weight = (of_weight * above).to(ctx.dtype)
        return of_hidden, of_weight, None, None


def kl_sum(
    hidden: Tensor, head: Head, teacher: Tensor, teacher_head: Head, labels: Tensor, chunk: int
) -> Tensor:
    """Summed KL(teacher || model) in nats over tokens that have a label, with gradient in `hidden`.

    hidden, teacher [..., d]: last hidden states, mapped to logits by head and teacher_head.
    """
    ours, theirs, valid = hidden.flatten(0, -2), teacher.flatten(0, -2), labels.flatten() != IGNORED
    total = ours.new_zeros((), dtype=accumulator(ours.dtype))
    for parts in zip(*(each.split(chunk) for each in (ours, theirs, valid)), strict=True):
        total = total + checkpoint(_chunk_kl, *parts, head, teacher_head, use_reentrant=False)
    return total


def _chunk_kl(ours: Tensor, theirs: Tensor, valid: Tensor, head: Head, other: Head) -> Tensor:
    q = head(ours)
    q = q.to(accumulator(q.dtype)).log_softmax(-1)
    with torch.no_grad():
        p = other(theirs).to(q.dtype).log_softmax(-1)
    return ((p.exp() * (p - q)).sum(-1) * valid).sum()


@torch.no_grad()
def token_scores(hidden: Tensor, head: Head, labels: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """(NLL, 1 where the label is the likeliest token), each [...] like labels; 0 where ignored."""
    flat, targets = hidden.flatten(0, -2), labels.flatten()
    scores, hits = [], []
    for part, label in zip(flat.split(chunk), targets.split(chunk), strict=True):
        logits = head(part)
        logits = logits.to(accumulator(logits.dtype))
        scores.append(F.cross_entropy(logits, label, ignore_index=IGNORED, reduction="none"))
        hits.append((logits.argmax(-1) == label).to(logits.dtype))
    return torch.cat(scores).view_as(labels), torch.cat(hits).view_as(labels)


def _chunk_sum(part: Tensor, label: Tensor, head: Head) -> Tensor:
    logits = head(part)
    return F.cross_entropy(
        logits.to(accumulator(logits.dtype)), label, ignore_index=IGNORED, reduction="sum"
    )
