"""Where tensors are worked on: the `--device` and `--threads` of every command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.errors import InputError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """'auto' is CUDA where there is one. Raises InputError where a device is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device '{name}' is not auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not (
        torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    ):
        raise InputError(f"--device {name}: torch {torch.__version__} sees no such GPU here.")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device '{name}' is not auto, cpu, cuda or cuda:N.")
    return device


def use_threads(count: int | None) -> None:
    """Let torch use `count` threads (None: as it chose). Raises InputError below 1."""
    import torch

    if count is not None:
        if count < 1:
            raise InputError(f"--threads {count} is too few; give at least 1.")
        torch.set_num_threads(count)
