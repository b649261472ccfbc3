"""The mesh of processes: replicate x shard x context x ulysses, ulysses ranks being neighbours.

`context` ranks share one sequence by exchanging keys and values, `ulysses` ranks share it by
exchanging heads (inside a node), `shard` and `replicate` ranks see other sequences. Parameters are
the same on all of them, so FSDP may cut them over shard x context x ulysses together.

One process needs no launcher and no process group. More come from `torchrun`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from math import prod
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.distributed as dist

from regraft.errors import InputError, RegraftError
from regraft.parallel.exchange.choose import (
    CPU,
    GPU_CLUSTER,
    GPU_NODE,
    Machine,
    Work,
    needed_bandwidth,
    pick,
)
from regraft.parallel.groups import (
    fsdp_device_mesh,
    is_lost_rank,
    join_processes,
    own_group,
    process_count,
)
from regraft.parallel.kernels.choose import choose

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

Algorithm = Literal["auto", "gather", "ring"]
TIMEOUT = 600.0
WAIT_TIMEOUT = timedelta(days=7)
"""Timeout of `wait`: the work that the other processes wait for may take hours."""


@dataclass(frozen=True, eq=False)
class Processes:
    """The mesh of all processes, and this one's coordinates in it; `shards.Mesh` adds the cut of a
    batch. Made by `create`."""

    context: int = 1
    ulysses: int = 1
    shard: int = 1
    replicate: int = 1
    algorithm: Algorithm = "auto"
    kernel: str = "auto"
    machine: Machine = CPU
    timeout: float = TIMEOUT
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    groups: dict[str, dist.ProcessGroup] = field(default_factory=dict)
    fsdp_mesh: DeviceMesh | None = None
    """The mesh for `fully_shard`, over all processes: 1-D ('shard'), or 2-D ('replicate', 'shard')
    where replicate > 1. None for one process."""

    @classmethod
    def create(
        cls,
        context: int | Literal["auto"] = 1,
        ulysses: int | Literal["auto"] = 1,
        shard: int | Literal["auto"] = "auto",
        replicate: int | Literal["auto"] = 1,
        algorithm: Algorithm = "auto",
        kernel: str = "auto",
        machine: Machine | None = None,
        device: str = "auto",
        timeout: float = TIMEOUT,
    ) -> Self:
        """Join the processes that torchrun started into a mesh.

        At most one size may be 'auto': the number of processes over the product of the others.
        timeout: seconds after which a rank that does not answer is an error and not a hang.
        machine: rates for algorithm 'auto'; default: assumed by the kind of device. Raises
        InputError where the product of the sizes is not the number of processes.
        """
        sizes = {"replicate": replicate, "shard": shard, "context": context, "ulysses": ulysses}
        world = process_count()
        solved = _solve(sizes, world)
        if algorithm not in ("auto", "gather", "ring"):
            raise InputError(f"parallel algorithm '{algorithm}' is not auto, gather or ring.")
        own_device = _device_of_rank(device)
        groups: dict[str, dist.ProcessGroup] = {}
        fsdp = None
        if world > 1:
            limit = timedelta(seconds=timeout)
            join_processes(own_device, limit)
            line = torch.arange(world)
            ranks = line.view(-1, solved["context"], solved["ulysses"])
            for name, rows in (("context", ranks.movedim(1, -1)), ("ulysses", ranks)):
                if solved[name] > 1:
                    groups[name] = own_group(rows, limit)
            # A traced step has torch's backend "fake", in which the other processes do not exist.
            backend = "fake" if dist.get_backend() == "fake" else "gloo"
            groups["all"] = dist.new_group(timeout=WAIT_TIMEOUT, backend=backend)
            fsdp = fsdp_device_mesh(own_device.type, line.view(solved["replicate"], -1), limit)
            # If rank 0 fails right after this, its store ends with it: the other ranks must have
            # created their groups.
            dist.all_reduce(torch.zeros(1))
        return cls(
            **solved,
            algorithm=algorithm,
            kernel=kernel,
            machine=machine or _assumed(own_device, solved["context"] * solved["ulysses"]),
            timeout=timeout,
            device=own_device,
            groups=groups,
            fsdp_mesh=fsdp,
        )

    @property
    def size(self) -> int:
        """All processes."""
        return self.replicate * self.shard * self.context * self.ulysses

    @property
    def rank(self) -> int:
        """This process among all; 0 writes files."""
        return dist.get_rank() if self.size > 1 else 0

    @property
    def data_size(self) -> int:
        """Number of different batches that are trained on at a time."""
        return self.replicate * self.shard

    @property
    def data_rank(self) -> int:
        """Index of this process's batch; ranks that share a sequence must load the same one."""
        return self.rank // (self.context * self.ulysses)

    @property
    def context_rank(self) -> int:
        return self.rank // self.ulysses % self.context

    @property
    def ulysses_rank(self) -> int:
        return self.rank % self.ulysses

    def group(self, name: Literal["context", "ulysses"]) -> dist.ProcessGroup | None:
        """The process group of one dimension, None where it has one rank."""
        return self.groups[name] if getattr(self, name) > 1 else None

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes of a tensor of the same shape (no gradient)."""
        total = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over all processes, in float64 on the host.

        On GPUs this goes by gloo, whose failure can be caught. NCCL's watchdog aborts the process
        instead, so the first collective of a step is one of these: a rank that died is usually
        detected there (see `guard`).
        """
        return self.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def wait(self) -> None:
        """Barrier without a timeout, for when one process alone reads or writes text or a model.
        The end of a process is still an error at once. Collective."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1), group=self.groups["all"])

    def sum_tokens(self, labels: Tensor) -> int:
        """Number of labels that are not -100 over the parts of all processes, at least 1: divide a
        summed loss by it, so that every token weighs the same on every rank."""
        return max(int(self.sum_numbers([int((labels != -100).sum())])[0]), 1)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Raise RegraftError, one sentence, where a collective in the block fails because a rank
        died or did not answer for `timeout` seconds."""
        try:
            yield
        except (dist.DistError, RuntimeError) as error:
            if not is_lost_rank(error):
                raise
            raise RegraftError(
                f"Process {self.rank} of {self.size} lost another one: it died or did not "
                f"answer for {self.timeout:.0f} s. See the others' messages; go on with --resume."
            ) from error

    def close(self) -> None:
        """Leave the process groups, at the end of the work."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def describe(
        self,
        model: torch.nn.Module | None = None,
        length: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> str:
        """Lines for the log: the sizes; for a model also the kernel; for a length in tokens also
        the exchange, why, and the bandwidth that hides it. dtype: of the arithmetic, where that is
        not the model's own."""
        sizes = ", ".join(
            f"{name} {size}"
            for name in ("replicate", "shard", "context", "ulysses")
            if (size := getattr(self, name)) > 1
        )
        line = f"{self.size} processes on {self.device.type}: {sizes}" if sizes else "one process"
        if model is None:
            return line
        config = model.config.get_text_config()  # type: ignore[operator, union-attr]
        dtype = dtype or next(model.parameters()).dtype
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kernel = choose(self.device.type, dtype, head, self.kernel)
        line += f"; attention kernel {kernel.name}"
        if length is None or self.context == 1:
            return line
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        heads, kv_heads = heads // self.ulysses, kv_heads // self.ulysses
        work = Work(length, self.context, heads, kv_heads, head, dtype.itemsize)
        exchange, reason = pick(work, self.machine)
        if self.algorithm != "auto":
            exchange, reason = self.algorithm, "as requested"
        needed = needed_bandwidth(work, self.machine.flops) / 1e9
        return (
            f"{line}; {exchange} ({reason}); hidden above {needed:.2g} GB/s for each rank "
            f"at {self.machine.flops / 1e12:.3g} Tflop/s"
        )


def _solve(sizes: dict[str, int | Literal["auto"]], world: int) -> dict[str, int]:
    for name, size in sizes.items():
        if size != "auto" and (not isinstance(size, int) or size < 1):
            raise InputError(f"parallel {name} is {size!r}; give a number of at least 1, or auto.")
    fixed = {name: size for name, size in sizes.items() if size != "auto"}
    free = [name for name in sizes if name not in fixed]
    if len(free) > 1:
        raise InputError(f"Only one of {', '.join(free)} can be auto.")
    product = prod(fixed.values())
    if world % product or (not free and world != product):
        text = " x ".join(f"{name} {size}" for name, size in fixed.items() if size > 1) or "1"
        raise InputError(
            f"This mesh needs {'a multiple of ' if free else ''}{product} processes ({text}) but "
            f"there {'is' if world == 1 else 'are'} {world}; start it with "
            f"torchrun --nproc-per-node {product}, or change `parallel`."
        )
    return {name: fixed.get(name, world // product) for name in sizes}


def _assumed(device: torch.device, ranks: int) -> Machine:
    if device.type != "cuda":
        return CPU
    node = int(os.environ.get("LOCAL_WORLD_SIZE", torch.cuda.device_count()))
    return GPU_NODE if ranks <= node else GPU_CLUSTER


def _device_of_rank(name: str) -> torch.device:
    from regraft.device import pick_device

    device = pick_device(name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        if device.index >= torch.cuda.device_count():
            raise InputError(
                f"This node has {torch.cuda.device_count()} GPUs, fewer than its processes."
            )
        torch.cuda.set_device(device)
    return device
