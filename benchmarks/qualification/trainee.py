"""A LoRA step of a model with random weights on the device, measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from training import learner_step, make_body, make_learner, make_model, random_rows

from qualification.scope import LAYERS, Scope
from regraft.data.batch import Row, collate
from regraft.parallel import Mesh
from regraft.train.estimate.throughput import Throughput, known_peak
from regraft.train.step.learner import Learner

OutOfMemory = torch.OutOfMemoryError


@dataclass(frozen=True)
class Measured:
    """One step. flops: without recomputation. peaks: `Scope.peaks`."""

    layers: int
    length: int
    seconds: float
    loss: float
    flops: float
    peaks: dict[str, float]

    def values(self, peak: float | None) -> dict[str, Any]:
        """Values of a line of the report. peak: FLOP/s of the card."""
        return {
            "layers": self.layers, "length": self.length, "step_s": self.seconds,
            "tokens_per_s": self.length / self.seconds, **_mfu(self.flops, self.seconds, peak),
            **self.peaks, "loss": self.loss,
        }  # fmt: skip


class Trainee:
    """A learner and its step. memory: the recipe's block. kernel: the name of attention's kernel.
    bits: of the frozen weights, None for the dtype of training.

    One short step is run first, to load libraries and choose kernels.
    """

    def __init__(
        self, scope: Scope, layers: int, longest: int, memory: dict[str, Any],
        kernel: str = "auto", bits: Literal[4] | None = None,
    ) -> None:  # fmt: skip
        self.scope, self.layers = scope, layers
        self.body = make_body("lora", memory, bits)
        self.mesh = Mesh.create(device=str(scope.device), kernel=kernel)
        with scope.device:
            model = make_model(scope.model(layers), longest, scope.dtype)
        self.learner: Learner = make_learner(model, self.body, self.mesh)
        self.step: Callable[[Row], float] = learner_step(self.learner, self.body, self.mesh)
        self.throughput = Throughput(self.learner, self.body, self.mesh)
        self.vocabulary = scope.model(1)["vocab_size"]
        self.step(next(random_rows(scope.pick(4096, 4096, 32), self.vocabulary, 1)))
        scope.clear()

    def measure(self, length: int) -> Measured:
        """One step on a row of `length` tokens. Raises torch.OutOfMemoryError."""
        row = next(random_rows(length, self.vocabulary, 1))
        self.scope.reset_peaks()
        seconds, loss = self.scope.timed(lambda: self.step(row))
        flops = self.throughput.document_flops(length)
        return Measured(self.layers, length, seconds, loss, flops, self.scope.peaks())


def card_peak(scope: Scope) -> float | None:
    """FLOP/s of the card in bfloat16, as published."""
    return known_peak(scope.device)


def extrapolated(one: Measured, more: Measured, layers: int = LAYERS) -> Measured:
    """The step of a model with more layers: layers are alike, so time, FLOPs and peaks are linear
    in their number, and two measurements give the line."""

    def line(a: float, b: float) -> float:
        return a + (b - a) * (layers - one.layers) / (more.layers - one.layers)

    peaks = {
        name: line(value, more.peaks[name]) if name.endswith("GiB") else more.peaks[name]
        for name, value in one.peaks.items()
    }
    return Measured(
        layers, one.length, line(one.seconds, more.seconds), more.loss,
        line(one.flops, more.flops), peaks,
    )  # fmt: skip


def gradients(learner: Learner, mesh: Mesh, row: Row) -> tuple[float, dict[str, Tensor]]:
    """The loss of a row and its gradients by name, in float32; removed from the learner."""
    loss = learner(mesh.cut(collate([row]))) / row.valid
    loss.backward()
    return float(loss.detach()), take_gradients(learner.trained())


def take_gradients(parameters: dict[str, Any]) -> dict[str, Tensor]:
    """Gradients by name, in float32 and whole; removed from the parameters."""
    grads = {}
    for name, parameter in parameters.items():
        grads[name] = whole(parameter.grad).float()
        parameter.grad = None
    return grads


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is sharded over processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def draw_lora(parameters: dict[str, Any]) -> None:
    """Draw the second factors, which begin as zeros: the first have no gradient while they are."""
    generator = torch.Generator().manual_seed(3)
    make = partial(torch.randn, generator=generator)
    with torch.no_grad():
        for name in sorted(name for name in parameters if "lora_B" in name):
            parameters[name].copy_(0.02 * make(parameters[name].shape))


def _mfu(flops: float, seconds: float, peak: float | None) -> dict[str, float]:
    return {"MFU": flops / seconds / peak} if peak else {}
