"""How fast a run is: floating-point operations of a step, and the share of the chip's rate (MFU).

Recomputed layers are not counted (PaLM, arXiv 2204.02311, appendix B), attention only within
documents. Where the chip's rate is neither known nor stated there is no MFU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from regraft.data.batch import Row
from regraft.parallel import Mesh
from regraft.train.estimate.budget import Shape, step_flops
from regraft.train.estimate.machine import DEVICES, known_device
from regraft.train.recipe.schema import Body, trains_everything
from regraft.train.step.learner import Learner


class Speed:
    """Of one model on one mesh."""

    def __init__(self, learner: Learner, body: Body, mesh: Mesh) -> None:
        parameters = sum(parameter.numel() for parameter in learner.parameters())
        trained = sum(parameter.numel() for parameter in learner.trained().values())
        config = learner.model.config.get_text_config().to_dict()
        self.shape = Shape.of(config, parameters, trained)
        self.full, self.devices = trains_everything(body), mesh.size
        # of experts only some work, which the count of parameters does not tell
        experts = any("num_experts" in key or "num_local_experts" in key for key in config)
        self.peak = None if experts else body.parallel.peak or known_peak(mesh.device)

    def flops(self, rows: Sequence[Row]) -> float:
        """Of training on these rows."""
        return sum(self.of(int(n)) for row in rows for n in sizes(row))

    def of(self, tokens: int) -> float:
        """Of training on one document."""
        return step_flops(self.shape, tokens, full=self.full, checkpoint=False)

    def mfu(self, flops: float, seconds: float) -> float | None:
        """Share of what all devices could have done; None where nobody knows."""
        return flops / seconds / (self.peak * self.devices) if self.peak else None


def sizes(row: Row) -> torch.Tensor:
    """Tokens of each document of a row."""
    return torch.unique_consecutive(row.documents, return_counts=True)[1]


def known_peak(device: torch.device) -> float | None:
    """A GPU's published bfloat16 rate in FLOP/s, by its name."""
    if device.type != "cuda":
        return None
    name = known_device(torch.cuda.get_device_name(device))
    return None if name is None else DEVICES[name][0]


def peak_memory(device: torch.device) -> int:
    """Most bytes of GPU memory so far; on a CPU, of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
