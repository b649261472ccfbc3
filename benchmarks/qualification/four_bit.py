"""LoRA over 4-bit weights (`load: {bits: 4}`): arithmetic, memory and time on the device."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from torch.nn import functional as F
from training import make_body, make_learner, make_model, random_rows

from qualification.lengths import BOTH
from qualification.report import Report
from qualification.scope import Scope, relative
from qualification.trainee import OutOfMemory, Trainee, card_peak, draw_lora, gradients
from regraft.parallel import Mesh
from regraft.train.step.four_bit import FourBitLinear


def check_four_bit(scope: Scope, report: Report) -> None:
    """Packed weights of the device against the CPU's, a step against one on the same weights in
    the training's dtype, then all layers at 16k and 64k tokens."""
    if importlib.util.find_spec("bitsandbytes") is None:
        report.figure("not here", why="bitsandbytes is not installed")
        return
    _check_layer(scope, report)
    _check_learner(scope, report)
    _measure(scope, report)


def _check_layer(scope: Scope, report: Report) -> None:
    """Quantised on the device and on the CPU; products with its weights."""
    out, width = scope.pick((4096, 4096), (4096, 4096), (96, 64))
    torch.manual_seed(0)
    linear = torch.nn.Linear(width, out, bias=False, dtype=scope.dtype)
    host = FourBitLinear(linear)
    layer = FourBitLinear(linear.to(scope.device))
    nibbles = sum(
        ((host.packed.flatten() ^ layer.packed.cpu().flatten()) & mask).count_nonzero().item()
        for mask in (0x0F, 0xF0)
    )
    weight = layer.whole(layer.packed, scope.dtype)
    x = torch.randn(256, width, device=scope.device, dtype=scope.dtype, requires_grad=True)
    above = torch.randn(256, out, device=scope.device, dtype=scope.dtype)
    results = []
    for output in (layer(x), F.linear(x, weight)):
        results.append((output.detach(), *torch.autograd.grad(output, x, above)))
    apart = [relative(a.float(), b.float()) for a, b in zip(*results, strict=True)]
    report.check(
        "a layer", max(apart) <= 4 * torch.finfo(scope.dtype).eps, weights=out * width,
        other_values_on_the_CPU=nibbles, scales_equal=torch.equal(host.scales, layer.scales.cpu()),
        output=apart[0], gradient=apart[1],
    )  # fmt: skip


def _check_learner(scope: Scope, report: Report) -> None:
    """Loss and gradients of two layers over packed weights and over the same weights unpacked."""
    length = scope.pick(8192, 4096, 64)
    sizes = scope.model(2)
    row = next(random_rows(length, sizes["vocab_size"], 1))
    mesh = Mesh.create(device=str(scope.device))
    weights: dict[str, torch.Tensor] = {}
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    bits: Literal[4] | None
    for bits in (4, None):
        with scope.device:
            model = make_model(sizes, length, scope.dtype)
        if bits is None:
            for name, module in model.model.layers.named_modules():
                if name in weights:
                    module.weight.data.copy_(weights[name])
        body = make_body("lora", {}, bits)
        torch.manual_seed(1)
        learner = make_learner(model, body, mesh)
        draw_lora(learner.trained())
        for name, module in model.model.layers.named_modules():
            if isinstance(module, FourBitLinear):
                plain = name.removesuffix(".base_layer")
                weights[plain] = module.whole(module.packed, scope.dtype).clone()
        results.append(gradients(learner, mesh, row))
        del model, learner
        scope.clear()
    (loss, ours), (exact_loss, exact) = results
    worst = max(relative(ours[name], exact[name]) for name in exact)
    report.check(
        "a step", len(weights) == 14 and worst <= 8 * torch.finfo(scope.dtype).eps, length=length,
        loss=loss, loss_apart=abs(loss / exact_loss - 1), worst_gradient=worst,
    )  # fmt: skip


def _measure(scope: Scope, report: Report) -> None:
    """Steps of all layers; the first allocates the host memory of the layers' inputs."""
    layers = scope.pick(32, 32, 2)
    body: dict[str, Any] = {**BOTH, "loss_chunk": 1024}
    lengths = scope.pick((65536, 16384), (16384,), (64,))
    try:
        trainee = Trainee(scope, layers, lengths[0], body, bits=4)
        for number, length in enumerate((lengths[0], *lengths)):
            values = trainee.measure(length).values(card_peak(scope))
            report.figure("all layers" if number else "all layers, allocating", **values)
            if scope.left() < 1.3 * values["step_s"]:
                return
    except OutOfMemory as error:
        report.figure("all layers: out of memory", error=str(error)[:200])
