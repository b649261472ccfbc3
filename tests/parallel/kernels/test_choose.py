"""The attention kernel that is chosen for a device."""

from __future__ import annotations

import torch

from regraft.parallel.kernels.choose import choose


def test_the_chosen_kernel_runs():
    """torch packs bfloat16 for AMX from 64 tokens on, and fails at it below avx512: this test also
    runs under other instruction sets, from lowrank/test_certificate.py."""
    q = torch.ones(1, 4, 128, 16, dtype=torch.bfloat16)
    out, lse = choose("cpu", torch.bfloat16, 16).forward(q, q[:, :2], q[:, :2], True, 0.1)
    # means of ones, rounded to bfloat16
    torch.testing.assert_close(out.float(), q.float(), rtol=2**-7, atol=0)
    assert lse.isfinite().all()
