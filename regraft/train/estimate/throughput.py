"""Throughput of a run: FLOPs of a step, and the share of the chip's rate that it reaches (MFU).

Recomputed layers are not counted (PaLM, arXiv 2204.02311, appendix B); attention is counted within
documents. There is no MFU where the chip's rate is neither known nor stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from regraft.data.batch import Row
from regraft.parallel import Mesh
from regraft.train.estimate.budget import Shape
from regraft.train.estimate.machine import DEVICES, known_device
from regraft.train.estimate.step_time import step_flops
from regraft.train.recipe.schema import Body, trains_everything
from regraft.train.step.four_bit import quantized_parameters
from regraft.train.step.learner import Learner


class Throughput:
    """FLOPs and MFU of one model on one mesh. `peak`: FLOP/s of a device, None where unknown."""

    def __init__(self, learner: Learner, body: Body, mesh: Mesh) -> None:
        self.shape = shape_of(learner)
        self.full, self.devices = trains_everything(body), mesh.size
        # A token uses only some of the experts, so FLOPs do not follow from the parameters.
        config = learner.model.config.get_text_config().to_dict()
        experts = any("num_experts" in key or "num_local_experts" in key for key in config)
        self.peak = None if experts else body.parallel.peak or known_peak(mesh.device)

    def flops(self, rows: Sequence[Row]) -> float:
        """FLOPs of one forward and backward pass over `rows`."""
        return sum(self.document_flops(int(n)) for row in rows for n in document_lengths(row))

    def document_flops(self, tokens: int) -> float:
        """FLOPs of one forward and backward pass over a document of `tokens`."""
        return step_flops(self.shape, tokens, full=self.full, checkpoint=False).total

    def mfu(self, flops: float, seconds: float) -> float | None:
        """Share of the FLOPs that all devices can do in `seconds`; None where that is unknown."""
        return flops / seconds / (self.peak * self.devices) if self.peak else None


def shape_of(learner: Learner) -> Shape:
    """Sizes of a learner's model, which may be on the meta device."""
    parameters = sum(parameter.numel() for parameter in learner.parameters())
    parameters += quantized_parameters(learner)
    trained = sum(parameter.numel() for parameter in learner.trained().values())
    config = learner.model.config.get_text_config()
    query_norms = any(name.endswith(".q_norm") for name, _ in learner.named_modules())
    head, embedding = learner.model.get_output_embeddings(), learner.model.get_input_embeddings()
    return Shape.of(
        config.to_dict(), parameters, trained,
        query_norms=query_norms, tied=head.weight is embedding.weight,
    )  # fmt: skip


def document_lengths(row: Row) -> torch.Tensor:
    """Number of tokens of each document of a row."""
    return torch.unique_consecutive(row.documents, return_counts=True)[1]


def known_peak(device: torch.device) -> float | None:
    """A GPU's published bfloat16 rate in FLOP/s, by its name."""
    if device.type != "cuda":
        return None
    name = known_device(torch.cuda.get_device_name(device))
    return None if name is None else DEVICES[name].peak


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory in bytes. active: in use, including freed tensors that another stream may still
    read; on a CPU, of the process. reserved: of the GPU's allocator, including its cache and
    fragments. retries: how often it released the cache to serve a request, which is slow. Both are
    None on a CPU."""

    active: int
    reserved: int | None = None
    retries: int | None = None


def peak_memory(device: torch.device) -> PeakMemory:
    """The peak memory of a GPU, or of this process on a CPU."""
    if device.type == "cuda":
        stats = torch.cuda.memory_stats(device)
        names = ("active_bytes.all.peak", "reserved_bytes.all.peak", "num_alloc_retries")
        return PeakMemory(*(int(stats[name]) for name in names))
    import resource

    return PeakMemory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
