"""The attention kernel that is chosen for a device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_the_chosen_kernel_runs_under_other_instruction_sets(capability):
    """torch packs bfloat16 for AMX from 64 tokens on, and fails at it below avx512."""
    code = (
        "import torch; from regraft.parallel.kernels.choose import choose; "
        "q = torch.ones(1, 4, 128, 16, dtype=torch.bfloat16); "
        "choose('cpu', torch.bfloat16, 16).forward(q, q[:, :2], q[:, :2], True, 0.1)"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
