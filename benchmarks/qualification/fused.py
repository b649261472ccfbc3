"""The kernels of RoPE and SwiGLU against float64, also with 2^31 values a tensor; their rates."""

from __future__ import annotations

import torch
from torch import Tensor

from qualification.report import Report
from qualification.scope import Scope
from regraft.errors import InputError
from regraft.train.recipe.execution import Memory
from regraft.train.step.fused import Rotate, SwiGlu, check_fused

_UNIT, _EPS = torch.finfo(torch.bfloat16).eps / 2, torch.finfo(torch.float32).eps
_FAR = 4_000_000  # positions


def check_fused_kernels(scope: Scope, report: Report) -> None:
    """Errors as a share of half a unit of bfloat16 with the roundings of float32, 1 or less."""
    try:
        check_fused(Memory(fused_rope=True, fused_swiglu=True), scope.device)
    except InputError as error:
        report.figure("not run", reason=str(error)[:300])
        return
    length = scope.pick(8192, 4096, 33)
    for heads, head, order in ((32, 128, "s H D"), (8, 64, "s H D"), (32, 128, "H s D")):
        _rotation(scope, report, (2, heads, length, head), order)
        scope.clear()
    _rotation(scope, report, (1, 32, scope.pick(2**19 + 1, 2**17, 65), 128), "s H D")
    scope.clear()
    _swiglu(scope, report, scope.pick(163_841, 32768, 5), 14336)


def _rotation(scope: Scope, report: Report, shape: tuple[int, int, int, int], order: str) -> None:
    """shape: [B, H, s, D], in memory in `order`. Forward with its gradient, tables for each row."""
    batch, heads, tokens, head = shape
    device = scope.device
    torch.manual_seed(0)
    if order == "H s D":
        x, above = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
    else:
        sizes = (batch, tokens, heads, head)
        x, above = (
            torch.randn(sizes, device=device, dtype=torch.bfloat16).transpose(1, 2)
            for _ in range(2)
        )
    inverse = 500_000.0 ** (-torch.arange(0, head, 2, device=device, dtype=torch.float64) / head)
    positions = torch.randint(_FAR, (batch, tokens), device=device)
    angles = (positions.double()[..., None] * inverse).repeat(1, 1, 2)
    cos, sin = angles.cos().float(), angles.sin().float()
    x.requires_grad_()
    y = Rotate.apply(x, cos, sin)
    (grad,) = torch.autograd.grad(y, x, above)
    rows = _rows(tokens, 256, device)
    error = max(
        _rotation_error(y.detach(), x.detach(), cos, sin, rows),
        _rotation_error(grad, above, cos, -sin, rows),
    )
    again = Rotate.apply(x, cos, sin)
    seconds = scope.best(lambda: Rotate.apply(x, cos, sin))
    report.check(
        "rotation", error <= 1 and torch.equal(again, y), shape=str(list(shape)), memory=order,
        error=error, same_bits=torch.equal(again, y), GBps=4 * x.numel() / seconds / 1e9,
    )  # fmt: skip


def _rotation_error(y: Tensor, x: Tensor, cos: Tensor, sin: Tensor, rows: Tensor) -> float:
    y, x = (tensor[:, :, rows].double() for tensor in (y, x))
    c, s = (table[:, None, rows].double() for table in (cos, sin))
    half = x.shape[-1] // 2
    terms = x * c, torch.cat([-x[..., half:], x[..., :half]], -1) * s
    return _error(y, terms[0] + terms[1], 2 * _EPS * (terms[0].abs() + terms[1].abs()))


def _swiglu(scope: Scope, report: Report, tokens: int, width: int) -> None:
    torch.manual_seed(0)
    gate, up, above = (
        torch.randn(tokens, width, device=scope.device, dtype=torch.bfloat16) for _ in range(3)
    )
    rows = _rows(tokens, 256, scope.device)
    g, u, d = (tensor[rows].double() for tensor in (gate, up, above))
    inputs = [tensor.requires_grad_().view_as(tensor) for tensor in (gate, up)]
    y = SwiGlu.apply(*inputs)
    seconds = scope.best(lambda: SwiGlu.apply(*inputs))
    same = torch.equal(SwiGlu.apply(*inputs), y)
    grads = torch.autograd.grad(y, inputs, above)
    share = g.sigmoid()
    exact = g * share * u, d * u * share * (1 + g * (1 - share)), d * g * share
    sizes = exact[0].abs(), (d * u).abs(), exact[2].abs()
    errors = [
        _error(tensor.detach()[rows].double(), want, 32 * _EPS * size)
        for tensor, want, size in zip((y, *grads), exact, sizes, strict=True)
    ]
    again = SwiGlu.apply(*inputs)  # which the backward pass has overwritten
    backward, _ = scope.timed(lambda: torch.autograd.grad(again, inputs, above))
    report.check(
        "SwiGLU", max(errors) <= 1 and same, shape=str([tokens, width]), error=max(errors),
        same_bits=same, GBps=6 * y.numel() / seconds / 1e9,
        backward_GBps=10 * y.numel() / backward / 1e9,
    )  # fmt: skip


def _rows(count: int, most: int, device: torch.device) -> Tensor:
    """Indices of at most `most` of `count` rows, the first and the last among them."""
    return torch.linspace(0, count - 1, min(count, most), device=device).long().unique()


def _error(result: Tensor, exact: Tensor, slack: Tensor) -> float:
    """The largest error as a share of half a unit of bfloat16 and `slack`; all float64."""
    bound = _UNIT * exact.abs() + slack * (1 + _UNIT) + torch.finfo(torch.float32).tiny
    return float(((result - exact).abs() / bound).max())
