"""Checks of low-rank and attention arithmetic for a process of its own, which may run on other
instructions (ATEN_CPU_CAPABILITY): torch reads that when it computes for the first time."""

from __future__ import annotations

import os
from unittest import mock

import torch
from low_rank import SPECTRA, check_decomposition, matrix, ratio_to_optimum

from regraft.lowrank import subspace
from regraft.lowrank.svd import truncated_svd
from regraft.parallel.kernels.choose import choose

SCALES = [1e-30, 1e-12, 1.0, 1e12, 1e30]


def check_certificates(half: bool, threads: int = 1, step: int = 3) -> None:
    """The certificate is not below the true ratio, for every `step`th spectrum. half: products
    are taken in bfloat16."""
    with mock.patch.object(subspace, "fast_bfloat16", return_value=half):
        for number, (name, spectrum) in enumerate(list(SPECTRA.items())[::step]):
            scale = SCALES[(number + threads) % len(SCALES)]
            delta = matrix(scale * spectrum(288), 288, 300, seed=number)
            result = truncated_svd(delta, 16, seed=threads)
            assert ratio_to_optimum(delta, result) <= result.certificate(), (name, scale)
            check_decomposition(delta, 16, result)


def check_dominating_column() -> None:
    """The certificate holds and is small where one column is far larger than the others."""
    delta = torch.randn(350, 300, generator=torch.Generator().manual_seed(0))
    delta[:, 3] *= 1e4
    result = truncated_svd(delta, 32)
    assert ratio_to_optimum(delta, result) <= result.certificate() <= 1.001


def check_chosen_kernel() -> None:
    """torch packs bfloat16 for AMX from 64 tokens on, and fails at it below avx512."""
    q = torch.ones(1, 4, 128, 16, dtype=torch.bfloat16)
    out, lse = choose("cpu", torch.bfloat16, 16).forward(q, q[:, :2], q[:, :2], True, 0.1)
    # means of ones, rounded to bfloat16
    torch.testing.assert_close(out.float(), q.float(), rtol=2**-7, atol=0)
    assert lse.isfinite().all()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ["ATEN_CPU_CAPABILITY"] == "default":
        assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    for half in (True, False):
        check_certificates(half)
    check_dominating_column()
    check_chosen_kernel()
