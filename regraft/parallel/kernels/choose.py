"""Which attention kernel: the fastest that is installed and correct on this device.

Every candidate first computes a small block, forward and backward, and must agree with `Reference`
there: a wrong kernel would train without an error message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor

from regraft import progress
from regraft.errors import InputError
from regraft.parallel.kernels.kernel import CpuFlash, Kernel, Lengths, Reference


def choose(device: str, dtype: torch.dtype, head_dim: int, name: str = "auto") -> Kernel:
    """The kernel for a device type, value type and head size.

    name: one of `names(device)`, or 'auto', the fastest that works, with a warning where that is
    `Reference`. Raises InputError for a name that is unknown, not installed, or wrong here, with
    the reason.
    """
    return _by_shape or _choose(device, dtype, head_dim, name)


def forget() -> None:
    """Have `choose` try the kernels again."""
    _choose.cache_clear()


_by_shape: Kernel | None = None


@contextmanager
def by_shape(kernel: Kernel) -> Iterator[None]:
    """Have `choose` return this kernel without a check, for tensors that have no data: what it
    computes on this machine is of no importance."""
    global _by_shape
    _by_shape, before = kernel, _by_shape
    try:
        yield
    finally:
        _by_shape = before


@cache
def _choose(device: str, dtype: torch.dtype, head_dim: int, name: str) -> Kernel:
    candidates = _candidates(device)
    if name != "auto" and name not in candidates:
        raise InputError(
            f"There is no attention kernel '{name}' for {device}; "
            f"choose auto or one of {', '.join(candidates)}."
        )
    reasons = []
    for candidate in candidates if name == "auto" else [name]:
        try:
            kernel = candidates[candidate]()
        except (ImportError, RuntimeError, AttributeError, ValueError) as error:
            reasons.append(f"{candidate} is not installed ({error})")
            continue
        reason = refusal(kernel, torch.device(device), dtype, head_dim)
        if reason is None:
            if reasons and isinstance(kernel, Reference):
                progress.warn(
                    f"Attention on {device} falls back to plain products, many times slower and "
                    f"with more memory: {'; '.join(reasons)}."
                )
            return kernel
        kernel.close()
        reasons.append(f"{candidate} {reason}")
    raise InputError(f"No attention kernel for {device}, {dtype}: {'; '.join(reasons)}.")


def names(device: str) -> list[str]:
    """Kernels that may exist for a device type ('cpu', 'cuda'), fastest first."""
    return list(_candidates(device))


def _candidates(device: str) -> dict[str, Callable[[], Kernel]]:
    if device == "cuda":
        from regraft.parallel.kernels.cuda import candidates

        kernels: dict[str, Callable[[], Kernel]] = {kernel.name: kernel for kernel in candidates()}
        return kernels | {"reference": Reference}
    return {"torch-cpu": CpuFlash, "reference": Reference}


def refusal(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why a kernel cannot be used, or None: forward and backward of two blocks, one causal with
    more keys than queries and one packed, against `Reference` in float64."""
    if dtype not in kernel.dtypes:
        return f"does not take {dtype}"
    if isinstance(kernel, Reference):
        return None
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    # (heads, tokens) of q, k, v, dout. From 64 tokens on torch packs bfloat16 for AMX, which fails
    # where ATEN_CPU_CAPABILITY is below avx512.
    shapes = ((4, 80), (2, 112), (2, 112), (4, 80))
    inputs = [draw(1, heads, tokens, head_dim).to(device, dtype) for heads, tokens in shapes]
    exact = [t.double() for t in inputs]
    # Single precision loses about 1e-6 here, bfloat16 1e-2, float16 1e-3; an error of logic, 1.
    bound = 40 * torch.finfo(dtype).eps
    try:
        blocks: tuple[bool | Lengths, ...] = (True, False, [(16, 16), (64, 96)])
        for block in blocks:
            result = forward_and_backward(kernel, inputs, block)
            expected = forward_and_backward(Reference(), exact, block)
            for name, error in largest_errors(result, expected).items():
                if not error < bound:
                    return f"disagrees with the reference in {name} by {error:.1e}"
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return f"cannot run here ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return None


def forward_and_backward(
    kernel: Kernel, inputs: Sequence[Tensor], mask: bool | Lengths
) -> dict[str, Tensor]:
    """out, lse, dq, dk and dv by name, of (q, k, v, dout) and the usual scale. mask: whether the
    block is causal, or the lengths of packed ones."""
    q, k, v, dout = inputs
    scale = q.shape[-1] ** -0.5
    if isinstance(mask, bool):
        out, lse = kernel.forward(q, k, v, mask, scale)
        out = out.to(q.dtype)
        grads = kernel.backward(dout, q, k, v, out, lse, mask, scale)
    else:
        out, lse = kernel.packed(q, k, v, mask, scale)
        out = out.to(q.dtype)
        grads = kernel.packed_backward(dout, q, k, v, out, lse, mask, scale)
    return dict(zip(("out", "lse", "dq", "dk", "dv"), (out, lse, *grads), strict=True))


def largest_errors(results: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """The largest error of each result, as a share of the largest value."""
    return {
        name: float((results[name].double() - value).abs().max() / value.abs().max())
        for name, value in exact.items()
    }
