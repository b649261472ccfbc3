"""One LoRA step of a few layers: loss and gradients against plain transformers and PEFT.

The reference is the plain model in float32; the base weights of all models are rounded to bfloat16.
Ours in bfloat16 may have no larger error than the plain model in bfloat16, with a margin for the
order of sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from training import RANK, make_body, make_learner, make_model, random_rows

from qualification.report import Report
from qualification.scope import Scope, relative
from qualification.trainee import draw_lora, gradients, take_gradients
from regraft.data.batch import Row
from regraft.device import deterministic_algorithms, full_precision, set_cublas_workspace
from regraft.errors import InputError
from regraft.parallel import Mesh
from regraft.train.recipe.execution import Memory
from regraft.train.step.fused import check_fused

_MARGIN = 1.5
_PREFIX = "base_model.model."
_LOSS = 1e-3  # of the loss: half a unit of bfloat16 in each logit, averaged over thousands of them


def check_step(scope: Scope, report: Report) -> None:
    """Losses and gradients of the plain model in float32 and bfloat16, and of ours with and without
    each memory saver."""
    set_cublas_workspace()
    layers, length = scope.pick(4, 2, 2), scope.pick(8192, 4096, 64)
    sizes = scope.model(layers)
    row = next(random_rows(length, sizes["vocab_size"], 1))
    with scope.device:
        model = make_model(sizes, length, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(scope.dtype))
    base = {name: value.detach().to(scope.dtype) for name, value in model.named_parameters()}
    plain, parameters = _with_peft(model)
    with full_precision():
        exact_loss, exact = _plain_gradients(plain, parameters, row, scope, torch.float32)
    for parameter in plain.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(scope.dtype)
    plain_loss, plain_grads = _plain_gradients(plain, parameters, row, scope, scope.dtype)
    plain_errors = _errors(plain_grads, exact)
    report.figure(
        "plain, " + str(scope.dtype)[6:], layers=layers, length=length, loss=plain_loss,
        loss_error=abs(plain_loss / exact_loss - 1), **plain_errors,
    )  # fmt: skip
    del plain, model, parameters, plain_grads
    scope.clear()

    least = 16 * torch.finfo(torch.float32).eps  # in float32 the plain model is the exact one
    ways: dict[str, dict[str, Any]] = {
        "recomputed": {}, "kept": {"checkpoint": False}, "offload": {"offload": True},
        "keep_attention": {"keep_attention": True}, "tiled_mlp": {"tiled_mlp": length // 4},
        "all": {"offload": True, "keep_attention": True, "tiled_mlp": length // 4},
        "fused_norms": {"fused_norms": True},
    }  # fmt: skip
    kernels = {"fused_rope": True, "fused_swiglu": True}
    try:
        check_fused(Memory.model_validate(kernels), scope.device)
    except InputError as error:
        report.figure("ours, fused kernels: not run", reason=str(error)[:300])
    else:
        ways |= {name: {name: True} for name in kernels}
        ways["all fused"] = {"fused_norms": True, **kernels}
    for name, memory in ways.items():
        ours_loss, ours = _our_gradients(scope, sizes, length, memory, base, row)
        errors = _errors(ours, exact)
        apart = abs(ours_loss / exact_loss - 1)
        within = all(errors[key] <= max(_MARGIN * plain_errors[key], least) for key in errors)
        report.check(
            f"ours, {name}", within and apart < _LOSS, layers=layers, length=length,
            loss=ours_loss, loss_error=apart, **errors,
        )  # fmt: skip
    try:
        _check_bits(scope, report, sizes, length, base, row)
    except RuntimeError as error:  # an operator without a deterministic kernel
        report.check("bits", False, error=str(error)[:300])


def _check_bits(
    scope: Scope, report: Report, sizes: dict[str, int], length: int, base: dict[str, Tensor],
    row: Row,
) -> None:  # fmt: skip
    """With deterministic kernels: the same bits again, and with each memory saver."""
    kernel = "flash" if scope.device.type == "cuda" else "auto"
    with deterministic_algorithms():
        first_loss, first = _our_gradients(scope, sizes, length, {}, base, row, kernel)
        for name, memory in (
            ("again", {}), ("offload", {"offload": True}),
            ("keep_attention", {"keep_attention": True}), ("tiled_mlp", {"tiled_mlp": length // 4}),
        ):  # fmt: skip
            loss, grads = _our_gradients(scope, sizes, length, memory, base, row, kernel)
            same = sum(torch.equal(grads[key], first[key]) for key in first)
            values = {
                "kernel": kernel, "same_loss": loss == first_loss, "same_tensors": same,
                "of": len(first), "largest_difference": max(_difference(grads, first)),
            }  # fmt: skip
            if name == "tiled_mlp":  # other products, which another algorithm may compute
                report.figure(f"bits, {name}", **values)
            else:
                report.check(f"bits, {name}", same == len(first) and loss == first_loss, **values)


def _difference(grads: dict[str, Tensor], others: dict[str, Tensor]) -> list[float]:
    return [relative(grads[name], other) for name, other in others.items()]


def _with_peft(model: Any) -> tuple[Any, dict[str, Any]]:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    torch.manual_seed(1)
    plain = get_peft_model(model, config)
    plain.train()
    parameters = {
        name.removeprefix(_PREFIX): parameter
        for name, parameter in plain.named_parameters()
        if parameter.requires_grad
    }
    draw_lora(parameters)
    return plain, parameters


def _plain_gradients(
    plain: Any, parameters: dict[str, Any], row: Row, scope: Scope, dtype: torch.dtype
) -> tuple[float, dict[str, Tensor]]:
    ids, labels = (tensor[None].to(scope.device) for tensor in (row.ids, row.labels))
    with torch.autocast(scope.device.type, dtype, enabled=dtype == torch.bfloat16):
        loss = plain(input_ids=ids, labels=labels, shift_labels=labels, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), take_gradients(parameters)


def _our_gradients(
    scope: Scope, sizes: dict[str, int], length: int, memory: dict[str, Any],
    base: dict[str, Tensor], row: Row, kernel: str = "auto",
) -> tuple[float, dict[str, Tensor]]:  # fmt: skip
    scope.clear()
    with scope.device:
        model = make_model(sizes, length, scope.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(base[name])
    torch.manual_seed(1)
    mesh = Mesh.create(device=str(scope.device), kernel=kernel)
    learner = make_learner(model, make_body("lora", memory), mesh)
    draw_lora(learner.trained())
    return gradients(learner, mesh, row)


def _errors(grads: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """||g - exact|| / ||exact|| of all gradients together, and of the worst tensor."""
    assert grads.keys() == exact.keys()
    squares = sum(float((grads[k].double() - e.double()).square().sum()) for k, e in exact.items())
    total = sum(float(e.double().square().sum()) for e in exact.values())
    return {
        "error_of_all": (squares / total) ** 0.5,
        "error_of_worst": max(relative(grads[name], e) for name, e in exact.items()),
    }
