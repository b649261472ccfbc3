"""Collectives, messages and failures of a mesh of two processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from parallel_models import tiny_llama


def job_mesh(rank: int) -> dict[str, Any]:
    """Descriptions of meshes, and the messages of refused meshes and batches."""
    from regraft.errors import RegraftError
    from regraft.parallel import Mesh

    result: dict[str, Any] = {}

    def sentence(name: str, call: Callable[[], Any]) -> None:
        try:
            result[name] = f"no error but {call()}"
        except RegraftError as error:
            result[name] = str(error)

    sentence("too many", lambda: Mesh.create(context=4, shard=1))
    mesh = Mesh.create(ulysses=2)
    result["default"] = Mesh.create().describe()
    q, kv = torch.zeros(1, 3, 4, 8), torch.zeros(1, 3, 4, 8)
    part = mesh.cut({"input_ids": torch.zeros(1, 8).long()})
    sentence("heads", lambda: part["context_parallel"].attend(q, kv, kv, 1.0))
    mesh = Mesh.create(context=2)
    result["tokens"] = mesh.sum_tokens(torch.tensor([[5, -100, 5], [-100, 5, 5]][: rank + 1]))
    model = tiny_llama(torch.float32)
    result["described"] = mesh.describe(model, 4096)
    text = torch.arange(8).unsqueeze(0)
    result["fsdp"] = list(mesh.fsdp_mesh.shape) if mesh.fsdp_mesh else None

    def other_positions() -> None:
        mesh.cut({"input_ids": text, "position_ids": text + rank})

    sentence("other positions", other_positions)
    sentence("other text", lambda: mesh.cut({"input_ids": text + rank}))
    sentence("other length", lambda: mesh.cut({"input_ids": text[:, : 8 - rank]}))
    return result


def job_wait(rank: int) -> float:
    """Seconds that a rank waited for one that worked longer than the mesh's timeout."""
    from regraft.parallel import Mesh

    mesh = Mesh.create(context=2, timeout=1)
    start = time.monotonic()
    if rank == 0:
        time.sleep(1.5)
    mesh.wait()
    return time.monotonic() - start


def job_sums(rank: int) -> list[float]:
    """Numbers of both ranks, added in float64."""
    from regraft.parallel import Mesh

    return Mesh.create(shard=2).sum_numbers([2.0**40 + rank, 0.5])


def job_lost(rank: int) -> list[Any]:
    """A rank ends between forward and backward."""
    return _attend_with_absent_rank(timeout=60, linger=0)


def job_hung(rank: int) -> list[Any]:
    """A rank does not answer."""
    return _attend_with_absent_rank(timeout=1, linger=2)


def job_count_lost(rank: int) -> list[Any]:
    """A rank is gone when a step counts its tokens, its first collective."""
    from regraft.parallel import Mesh

    mesh = Mesh.create(shard=2, timeout=60)
    return _error_of_first(mesh, 0, lambda: mesh.sum_numbers([3, 0.5]))


def _attend_with_absent_rank(timeout: float, linger: float) -> list[Any]:
    from regraft.parallel import Mesh

    mesh = Mesh.create(context=2, algorithm="ring", timeout=timeout)
    part = mesh.cut({"input_ids": torch.zeros(1, 8).long()})
    q = torch.zeros(1, 2, 4, 8, requires_grad=True)
    out = part["context_parallel"].attend(q, q, q, 1.0)
    return _error_of_first(mesh, linger, lambda: out.sum().backward())


def _error_of_first(mesh: Any, linger: float, work: Callable[[], object]) -> list[Any]:
    """[message, seconds until it] in the first of two processes; the second does not take part and
    ends after `linger` seconds."""
    from regraft.errors import RegraftError

    start = time.monotonic()
    if mesh.rank == 1:
        time.sleep(linger)
        return []
    try:
        with mesh.guard():
            work()
    except RegraftError as error:
        return [str(error), time.monotonic() - start]
    return ["no error", 0.0]


def job_map(rank: int) -> dict[str, Any]:
    """Results of `map_over_processes`, and the error of one part."""
    from regraft.errors import InputError
    from regraft.evaluate.answers.distributed import map_over_processes
    from regraft.parallel import Mesh

    mesh = Mesh.create(shard="auto")

    def refuse(part: int) -> int:
        if part:
            raise InputError(f"part {part}")
        return part

    result: dict[str, Any] = {"squares": map_over_processes(mesh, range(5), lambda part: part**2)}
    result["none"] = map_over_processes(mesh, [], refuse)
    try:
        map_over_processes(mesh, range(4), refuse)
    except InputError as error:
        result["error"] = str(error)
    return result


def job_map_nan(rank: int) -> str:
    """The second process's part of a text has NaN: the error in this one."""
    from regraft.errors import InputError
    from regraft.evaluate.answers.distributed import map_over_processes
    from regraft.evaluate.answers.model import LanguageModel
    from regraft.parallel import Mesh

    mesh = Mesh.create(context=2, timeout=20)
    model = LanguageModel("broken", tiny_llama(torch.float32), mesh)
    head = model.head
    model.head = lambda hidden: head(hidden) * (float("nan") if rank else 1)
    text, positions = [list(range(1, 9))], [range(1, 8)]
    try:
        map_over_processes(mesh, [text], lambda part: model.score(part, positions))
    except InputError as error:
        return str(error)
    return "no error"


def job_map_lost(rank: int) -> list[Any]:
    """A process ends while the other one maps."""
    return _map_with_absent_rank(timeout=60, linger=0)


def job_map_hung(rank: int) -> list[Any]:
    """A process does not answer while the other one maps."""
    return _map_with_absent_rank(timeout=1, linger=3)


def _map_with_absent_rank(timeout: float, linger: float) -> list[Any]:
    from regraft.evaluate.answers.distributed import map_over_processes
    from regraft.parallel import Mesh

    mesh = Mesh.create(shard="auto", timeout=timeout)
    return _error_of_first(
        mesh, linger, lambda: map_over_processes(mesh, range(4), lambda part: part)
    )
