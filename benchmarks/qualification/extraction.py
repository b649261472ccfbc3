"""Truncated SVDs of Llama-3-8B's matrices, and `regraft extract-lora`, on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from llama8b import LLAMA_8B, TOY, make
from torch import Tensor

from qualification.commands import regraft
from qualification.report import Report
from qualification.scope import Scope
from regraft import Adapter, Checkpoint
from regraft.adapters.extract import streams
from regraft.device import full_precision
from regraft.lowrank.low_rank import LowRank
from regraft.lowrank.noise import rounding_noise
from regraft.lowrank.svd import truncated_svd

_TOLERANCE = 1e-3  # of `truncated_svd`: its error over the optimum's
_STORED = 1e-3  # additional relative error of factors stored in bfloat16
_READ = 5e9  # bytes/s of a disk


def models(scope: Scope) -> dict[str, Path]:
    """Checkpoints of Llama-3-8B's shapes, made on the device."""
    sizes = TOY if scope.scale == "rehearse" else LLAMA_8B
    layers = scope.pick(2, 1, 1)
    kinds = ("base", "extended", "derivative")
    return {kind: make(scope.folder, layers, kind, sizes, scope.device) for kind in kinds}


def check_extraction(scope: Scope, report: Report) -> None:
    """Error against the exact optimum, and time against the time to read both matrices; then the
    command on the device and on the CPU."""
    _decompose(scope, report)
    folders = models(scope)
    rank = scope.pick(64, 64, 8)
    seconds: dict[str, float] = {}
    adapters: dict[str, Adapter] = {}
    for name, device in (("device", scope.device.type), ("device, again", scope.device.type),
                         ("CPU", "cpu")):  # fmt: skip
        out = scope.folder / f"lora-{device}"
        seconds[name] = regraft(
            "extract-lora", folders["base"], folders["extended"], "-o", out, "--rank", rank,
            "--device", device, "--overwrite", "--no-verify", "--quiet",
        )  # fmt: skip
        adapters[name] = Adapter.open(out)
    with Checkpoint.open(folders["base"]) as base:
        read = 2 * sum(path.stat().st_size for path in folders["base"].glob("*.safetensors"))
        layers = int(base.config["num_hidden_layers"])
    report.figure(
        "extract-lora", layers=layers, read_GB=read / 1e9, seconds=seconds["device, again"],
        first_s=seconds["device"], CPU_s=seconds["CPU"], read_limit_s=read / _READ,
    )  # fmt: skip
    _compare(scope, report, folders, adapters["device, again"], adapters["CPU"])
    _measure_a_layer(scope, report)


def _measure_a_layer(scope: Scope, report: Report) -> None:
    """Seconds that one more layer takes, from models of two numbers of layers, one matrix at a time
    and several at once, beside the time to read it."""
    sizes = TOY if scope.scale == "rehearse" else LLAMA_8B
    few, many = scope.pick((2, 8), (1, 3), (1, 2))
    read = 2 * 2 * sum(m * n for m, n in sizes.projections.values()) / _READ
    for at_once in (1, streams.AT_ONCE):
        seconds = []
        for layers in (few, many):
            base, extended = (
                make(scope.folder, layers, kind, sizes, scope.device)
                for kind in ("base", "extended")
            )
            with _at_once(at_once):
                seconds.append(min(_extract(scope, base, extended) for _ in range(2)))
        a_layer = (seconds[1] - seconds[0]) / (many - few)
        report.figure(
            f"one more layer, {at_once} at once", layers=many, seconds=seconds[1],
            a_layer_s=a_layer, read_limit_s=read, over_read_limit=a_layer / read,
        )  # fmt: skip


def _extract(scope: Scope, base: Path, extended: Path) -> float:
    return regraft(
        "extract-lora", base, extended, "-o", scope.folder / "lora-layers", "--rank",
        scope.pick(64, 64, 8), "--device", scope.device.type, "--overwrite", "--no-verify",
        "--quiet",
    )  # fmt: skip


@contextmanager
def _at_once(matrices: int) -> Iterator[None]:
    module: Any = streams
    before, module.AT_ONCE = module.AT_ONCE, matrices
    try:
        yield
    finally:
        module.AT_ONCE = before


@full_precision()
def _decompose(scope: Scope, report: Report) -> None:
    sizes = TOY if scope.scale == "rehearse" else LLAMA_8B
    rank = scope.pick(64, 64, 8)
    truncated_svd(torch.randn(512, 1024, device=scope.device), 16)  # to load libraries
    generator = torch.Generator(scope.device).manual_seed(0)
    shapes = dict.fromkeys(sizes.projections.values())
    for m, n in list(shapes)[: scope.pick(4, 2, 4)]:
        _decompose_one(scope, report, _delta(m, n, sizes.directions, generator), rank)
        scope.clear()


def _decompose_one(scope: Scope, report: Report, delta: Tensor, rank: int) -> None:
    m, n = delta.shape
    half = delta.bfloat16() if scope.device.type == "cuda" else None

    def decompose() -> LowRank:
        return truncated_svd(delta, rank, half=half)

    first, result = scope.timed(decompose)
    seconds, again = scope.timed(decompose)
    rounded = delta.bfloat16()
    noise, _ = scope.timed(lambda: rounding_noise(rounded, rounded))
    approximation = (result.U.double() * result.S.to(delta.device)) @ result.Vt.double()
    error = float((delta.double() - approximation).norm() / delta.double().norm())
    over = error / _optimum(delta, rank)
    read = 2 * m * n * 2 / _READ
    report.check(
        f"{m} x {n}",
        1 - 1e-6 <= over <= result.certificate() + 1e-6
        and result.certificate() <= 1 + 2 * _TOLERANCE,
        rank=rank, seconds=min(first, seconds), read_limit_s=read,
        over_read_limit=min(first, seconds) / read, noise_s=noise, passes=result.passes,
        method=result.method, error_over_optimum=over, certificate=result.certificate(),
        same_bits=torch.equal(result.U, again.U),
    )  # fmt: skip


def _delta(m: int, n: int, directions: int, generator: torch.Generator) -> Tensor:
    """A change as in `llama8b.make`: slowly falling singular values on a full-rank tail."""
    device = generator.device
    s = torch.arange(1, directions + 1, device=device) ** -0.7
    left = torch.randn(m, directions, device=device, generator=generator) * s
    delta = left @ torch.randn(directions, n, device=device, generator=generator)
    delta /= delta.norm()
    tail = torch.randn(m, n, device=device, generator=generator)
    return delta.add_(tail, alpha=0.2 / (m * n) ** 0.5)


def _optimum(delta: Tensor, rank: int) -> float:
    """Error of the exact truncated SVD over the norm, by eigenvalues in float64."""
    wide = delta.double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    values = torch.linalg.eigvalsh(gram)
    return math.sqrt(float(values[:-rank].sum()) / float(values.sum()))


@full_precision()
def _compare(
    scope: Scope, report: Report, folders: dict[str, Path], ours: Adapter, theirs: Adapter
) -> None:
    """Adapters of the device and of the CPU: each error is within the tolerance of the optimum, so
    the two may differ by that and by the rounding of the stored factors."""
    worst, apart = 1.0, 0.0
    with Checkpoint.open(folders["base"]) as b, Checkpoint.open(folders["extended"]) as e:
        for module in ours.modules:
            pair = (e.tensor(module).to(scope.device), b.tensor(module).to(scope.device))
            delta = pair[0].double() - pair[1].double()
            products = []
            for adapter in (ours, theirs):
                up, down = (factor.to(scope.device).double() for factor in adapter.factors(module))
                products.append(up @ down)
            errors = [float((delta - product).norm() / delta.norm()) for product in products]
            worst = max(worst, errors[0] / errors[1], errors[1] / errors[0])
            apart = max(apart, float((products[0] - products[1]).norm() / products[1].norm()))
    report.check(
        "device against CPU", worst <= 1 + _TOLERANCE + _STORED, modules=len(ours.modules),
        errors_apart=worst - 1, products_apart=apart, bound=_TOLERANCE + _STORED,
    )  # fmt: skip
