"""Gradients of one optimizer step, over the rows of all processes.

The loss is the sum of the NLL over all valid tokens divided by their global number, so that it does
not matter how rows lie on devices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from regraft.data.batch import Row, collate
from regraft.errors import RegraftError
from regraft.parallel import Mesh
from regraft.train.estimate.throughput import Throughput
from regraft.train.recipe.schema import Body
from regraft.train.recovery import Recovery
from regraft.train.step.learner import Learner


class BackwardResult(NamedTuple):
    """Of all processes together. loss: mean NLL in nats; valid: tokens that have a label."""

    loss: float
    valid: int
    flops: float


def backward(
    learner: Learner,
    rows: list[Row],
    body: Body,
    mesh: Mesh,
    throughput: Throughput,
    recovery: Recovery | None = None,
) -> BackwardResult:
    """Add the gradients of the mean NLL over `rows` of all processes. Collective.

    recovery: adds its distillation loss on short rows. Raises RegraftError where no token of any
    process has a label.
    """
    size = body.memory.rows
    parts = [mesh.cut(collate(rows[start : start + size])) for start in range(0, len(rows), size)]
    count = sum(int((part["labels"] >= 0).sum()) for part in parts)
    # Rows are the same on the ranks of one sequence, which share their work.
    shared = throughput.flops(rows) / (mesh.context * mesh.ulysses)
    valid_all, flops = mesh.sum_numbers([count, shared])
    valid = int(valid_all)
    if valid == 0:
        raise RegraftError("A step has no token to learn from; the text is padding.")
    total = torch.zeros((), dtype=torch.float64, device=mesh.device)
    for i, part in enumerate(parts):
        nll = learner(part)
        total += nll.detach().double()
        if recovery is not None and body.recover.distill:
            short = [row.short for row in rows[i * size : (i + 1) * size]]
            nll = nll + body.recover.distill * recovery.distance(learner, part, short)
        # FSDP averages gradients over its processes; their sum is needed.
        (nll * (mesh.size / valid)).backward()
    return BackwardResult(float(mesh.sum(total)) / valid, valid, flops)
