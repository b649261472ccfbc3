"""One evaluation in several processes, with the same results as in one.

    torchrun --nproc-per-node 4 -m regraft evaluate MODEL -o OUT

Each batch (or prompt to generate from) is processed by one process, or by the `context` processes
that share its tokens. Batches are the same as in a single process, so answers do not depend on the
number of processes. Only process 0 writes, and it decides what a resumed run has left to do.
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
"""Seconds of silence from one process after which the others stop: longer than any batch."""

Part = TypeVar("Part")
Result = TypeVar("Result")


def join_mesh(context: int, device: str) -> Mesh:
    """The mesh of all processes, `context` of them for each prompt.

    Raises InputError if `context` does not divide the number of processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if context < 1 or world % context:
        raise InputError(
            f"--context-parallel {context} does not divide the {world} "
            f"process{'es' if world > 1 else ''} there {'are' if world > 1 else 'is'}; start "
            f"torchrun --nproc-per-node {max(context, 1)} (or a multiple) -m regraft evaluate ..."
        )
    return Mesh.create(context=context, shard="auto", device=device, timeout=TIMEOUT)


def silence_other_processes() -> None:
    """Turn off progress, notes and warnings in all processes but process 0."""
    if int(os.environ.get("RANK", "0")):
        progress.configure(quiet=True)
        warnings.simplefilter("ignore")


def map_over_processes(
    mesh: Mesh, parts: Sequence[Part], work: Callable[[Part], Result]
) -> list[Result]:
    """[work(part) for part in parts], computed by all processes and returned in each. Collective.

    Each part is processed by one process, or by those that share a sequence. The RegraftError of
    the first part that fails is raised in all processes.
    """
    numbers = range(mesh.data_rank, len(parts), mesh.data_size)
    results: dict[int, Result] = {}
    failed: tuple[int, RegraftError] | None = None
    with progress.bar("batches", total=len(numbers)) as bar:
        for number in numbers:
            try:
                results[number] = work(parts[number])
            except RegraftError as error:
                if mesh.size == 1:
                    raise
                failed = number, error
                break
            bar.advance()
    if mesh.size == 1:
        return [results[number] for number in numbers]
    gathered: list[tuple[dict[int, Result], tuple[int, RegraftError] | None]]
    gathered = [({}, None)] * mesh.size
    first = mesh.context_rank == mesh.ulysses_rank == 0
    dist.all_gather_object(gathered, (results if first else {}, failed))
    if errors := [error for _, error in gathered if error is not None]:
        raise min(errors, key=lambda error: error[0])[1]
    results = {number: value for part, _ in gathered for number, value in part.items()}
    return [results[number] for number in range(len(parts))]


def broadcast_from_first(mesh: Mesh, make: Callable[[], Result]) -> Result:
    """Call `make` in process 0 and return its result, or raise its RegraftError, in every process.
    Collective."""
    if mesh.size == 1:
        return make()
    box: list[tuple[Result | None, RegraftError | None]] = [(None, None)]
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


def barrier(mesh: Mesh) -> None:
    """Wait for all processes. Collective."""
    if mesh.size > 1:
        dist.all_reduce(torch.zeros(1))
