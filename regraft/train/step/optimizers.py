"""Optimizers, clipping of gradients, and the learning rate within a stage."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from regraft.errors import InputError
from regraft.train.recipe.execution import Optimizer
from regraft.train.recipe.stages import Schedule
from regraft.train.step.muon import Muon


def make(parameters: Mapping[str, Tensor], settings: Optimizer) -> list[torch.optim.Optimizer]:
    """One optimizer, or two for muon: matrices of the layers, and the rest by AdamW.

    Weight decay is for matrices. Every group's `share` is its rate over the stage's rate.
    Raises InputError for 8-bit moments without bitsandbytes and a GPU, or in several processes.
    """
    betas = (settings.betas[0], settings.betas[1])
    matrices = {name for name, value in parameters.items() if value.ndim == 2}
    inner = {name for name in matrices if ".layers." in name}
    if settings.name == "muon" and inner:
        ours = [parameters[name] for name in parameters if name in inner]
        others = {name: value for name, value in parameters.items() if name not in inner}
        share = settings.matrix_rate or 2.4
        muon = Muon([{"params": ours, "share": share}], weight_decay=settings.weight_decay)
        result: list[torch.optim.Optimizer] = [muon]
    else:
        result, others = [], dict(parameters)
    groups = [
        {"params": [v for n, v in others.items() if n in matrices], "share": 1.0},
        {"params": [v for n, v in others.items() if n not in matrices], "share": 1.0}
        | {"weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {
        "betas": betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if groups and settings.name == "adamw8bit":
        first = next(iter(parameters.values()))
        check_optimizer(settings, first.device, sharded=isinstance(first, DTensor))
        from bitsandbytes.optim import AdamW8bit

        result.append(AdamW8bit(groups, **options))
    elif groups:
        # fused: no temporaries as large as the moments, which foreach has on a GPU
        on_gpu = all(value.is_cuda for value in others.values())
        result.append(torch.optim.AdamW(groups, fused=True if on_gpu else None, **options))
    return result


def check_optimizer(settings: Optimizer, device: torch.device, *, sharded: bool) -> None:
    """Raise InputError where this optimizer cannot work on the device. sharded: parameters are
    sharded over several processes."""
    if settings.name != "adamw8bit":
        return
    if sharded:
        raise InputError(
            "optimizer adamw8bit works in one process only (bitsandbytes does not know "
            "parameters that are spread over several, its issue 1633); say adamw."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "optimizer adamw8bit needs bitsandbytes (pip install bitsandbytes); say adamw."
        )
    if device.type != "cuda":
        raise InputError("optimizer adamw8bit needs a GPU; say adamw.")


def clip_gradients(parameters: Iterable[Tensor], limit: float | None) -> float:
    """Scale the gradients so that their norm is at most `limit`. Returns the norm before, over all
    processes. Collective where the parameters are sharded."""
    norm = torch.nn.utils.clip_grad_norm_(list(parameters), limit or math.inf)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def set_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate of every group to its share of `rate`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """Learning rate over peak rate at `step` (from 0) of a stage of `steps`.

    Warm-up rises linearly to 1 at step `warmup`; the rate stays there for the share `stable` of
    the others (warmup-stable-decay, MiniCPM, arXiv 2404.06395); then cosine or a line falls
    towards `floor`, which the step after the last would reach.
    """
    if step < schedule.warmup:
        return (step + 1) / (schedule.warmup + 1)
    if schedule.kind == "constant":
        return 1.0
    done = (step - schedule.warmup) / max(1, steps - schedule.warmup)
    done = max(0.0, done - schedule.stable) / (1 - schedule.stable) if schedule.stable < 1 else 0.0
    down = (1 + math.cos(math.pi * done)) / 2 if schedule.kind == "cosine" else 1 - done
    return schedule.floor + (1 - schedule.floor) * down
