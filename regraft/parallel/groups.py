"""Process groups: joining them, their errors, and the groups of one dimension of a mesh."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from regraft.errors import RegraftError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def process_count() -> int:
    """Processes in the default group; before it is joined, those that torchrun started."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: torch.device, timeout: timedelta) -> None:
    """Join the default process group: gloo, and NCCL for tensors on GPUs. Raises RegraftError where
    the other processes do not answer."""
    if dist.is_initialized():
        return
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timeout)
    except (dist.DistError, ValueError) as error:
        raise RegraftError(
            f"The processes did not find each other within {timeout.total_seconds():.0f} s "
            f"({str(error).splitlines()[0]}); start them with torchrun."
        ) from error


def own_group(ranks: torch.Tensor, timeout: timedelta) -> dist.ProcessGroup:
    """The group of the row of `ranks` [..., n] that has this process; only its members create it.
    Every process is in exactly one row, and all create their groups in the same order."""
    rank = dist.get_rank()
    members = next(row for row in ranks.reshape(-1, ranks.shape[-1]).tolist() if rank in row)
    return dist.new_group(members, timeout=timeout, use_local_synchronization=True)


def fsdp_device_mesh(device: str, ranks: torch.Tensor, timeout: timedelta) -> DeviceMesh:
    """The mesh for `fully_shard` over `ranks` [replicate, shard], from groups with `timeout`: those
    that DeviceMesh creates have torch's default, up to half an hour."""
    from torch.distributed.device_mesh import DeviceMesh

    shard = own_group(ranks, timeout)
    if ranks.shape[0] == 1:
        return DeviceMesh.from_group(shard, device, mesh_dim_names=("shard",))
    names = ("replicate", "shard")
    groups = [own_group(ranks.T, timeout), shard]
    return DeviceMesh.from_group(groups, device, mesh=ranks, mesh_dim_names=names)


_LOST = ("onnection closed", "onnection reset", "onnection refused", "imed out", "imeout",
         "Broken pipe", "not connected", "Socket closed")  # fmt: skip


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error means that another process ended or did not answer. NCCL and the store raise
    DistError, gloo a bare RuntimeError."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return ("gloo" in text or "c10d" in text) and any(part in text for part in _LOST)
