"""One evaluation by several processes, the same as by one.

    torchrun --nproc-per-node 4 -m regraft evaluate MODEL -o OUT

Each batch (or prompt to be generated from) is worked on by one process, or by the `context` ones
that share its tokens; batches are those of a single process, so answers do not depend on how many
there are. Process 0 alone writes, and decides what a resumed run has to do.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from regraft import progress
from regraft.errors import InputError, RegraftError
from regraft.parallel import Mesh

TIMEOUT = 1800.0
"""Seconds after which a process that does not answer ends the others: more than a batch takes."""

Part = TypeVar("Part")
Found = TypeVar("Found")


def join_mesh(context: int, device: str) -> Mesh:
    """The processes there are, `context` of them to a prompt; all but process 0 fall silent.

    Raises InputError where they cannot be divided so.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if context < 1 or world % context:
        raise InputError(
            f"--context-parallel {context} does not divide the {world} "
            f"process{'es' if world > 1 else ''} there {'are' if world > 1 else 'is'}; start "
            f"torchrun --nproc-per-node {max(context, 1)} (or a multiple) -m regraft evaluate ..."
        )
    return Mesh.create(context=context, shard="auto", device=device, timeout=TIMEOUT)


def fall_silent() -> None:
    """Leave progress, notes and warnings to process 0."""
    if int(os.environ.get("RANK", "0")):
        progress.configure(quiet=True)
        warnings.simplefilter("ignore")


def spread(mesh: Mesh, parts: Sequence[Part], work: Callable[[Part], Found]) -> list[Found]:
    """`work` of every part, in their order, in every process. Collective.

    Each part is worked on in one process (by all that share a sequence). The RegraftError of the
    first part that has one is raised in all processes.
    """
    if mesh.size == 1:
        return [work(part) for part in parts]
    found: dict[int, Found] = {}
    failed: tuple[int, RegraftError] | None = None
    for number in range(mesh.data_rank, len(parts), mesh.data_size):
        try:
            found[number] = work(parts[number])
        except RegraftError as error:
            failed = number, error
            break
    everyone: list[tuple[dict[int, Found], tuple[int, RegraftError] | None]]
    everyone = [({}, None)] * mesh.size
    first = mesh.context_rank == mesh.ulysses_rank == 0
    dist.all_gather_object(everyone, (found if first else {}, failed))
    if errors := [error for _, error in everyone if error is not None]:
        raise min(errors, key=lambda error: error[0])[1]
    together = {number: value for part, _ in everyone for number, value in part.items()}
    return [together[number] for number in range(len(parts))]


def from_first(mesh: Mesh, make: Callable[[], Found]) -> Found:
    """What `make` gives in process 0, or its RegraftError, in every process. Collective."""
    if mesh.size == 1:
        return make()
    box: list[tuple[Found | None, RegraftError | None]] = [(None, None)]
    if mesh.rank == 0:
        try:
            box = [(make(), None)]
        except RegraftError as error:
            box = [(None, error)]
    dist.broadcast_object_list(box)
    value, failed = box[0]
    if failed is not None:
        raise failed
    return value  # type: ignore[return-value]


def meet(mesh: Mesh) -> None:
    """Wait for all processes. Collective."""
    if mesh.size > 1:
        dist.all_reduce(torch.zeros(1))
