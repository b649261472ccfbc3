"""Gradients of one optimizer step, over the rows of all processes.

The loss is the sum of the NLL over all tokens with a label, divided by their number over all
processes, so it does not depend on how rows are distributed.
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
    """Sums over all processes. loss: mean NLL in nats; valid: tokens that have a label; flops: of
    the forward and backward passes."""

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
    """Add the gradients of the mean NLL over the rows of all processes. Collective.

    rows: this process's. recovery: adds its distillation loss on short rows. Raises RegraftError
    where no token of any process has a label.
    """
    size = body.memory.rows
    parts = [mesh.cut(collate(rows[start : start + size])) for start in range(0, len(rows), size)]
    count = sum(int((part["labels"] >= 0).sum()) for part in parts)
    # The ranks of one sequence have the same rows and share the work on them.
    shared = throughput.flops(rows) / (mesh.context * mesh.ulysses)
    valid_all, flops = mesh.sum_numbers([count, shared])
    valid = int(valid_all)
    if valid == 0:
        raise RegraftError("A step has no token to learn from; the text is padding.")
    total = torch.zeros((), dtype=torch.float64, device=mesh.device)
    for i, part in enumerate(parts):
        nll = learner(part)
        total += nll.detach().double()
        if recovery is not None and recovery.teacher is not None and body.recover.distill:
            short = [row.short for row in rows[i * size : (i + 1) * size]]
            nll = nll + body.recover.distill * recovery.distance(learner, part, short)
        # FSDP averages gradients over its processes; their sum is needed.
        (nll * (mesh.size / valid)).backward()
    return BackwardResult(float(mesh.sum(total)) / valid, valid, flops)
