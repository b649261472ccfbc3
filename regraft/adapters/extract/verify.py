"""Loads a written adapter with PEFT and compares it with what was extracted."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from regraft import progress
from regraft.adapters.extract.factorize import Factorizer
from regraft.adapters.extract.select import Module
from regraft.adapters.peft_check import peft_deltas
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError


def verify_with_peft(
    folder: Path,
    base: Checkpoint,
    modules: list[Module],
    factorizer: Factorizer,
    dtype: torch.dtype,
) -> float:
    """The largest relative deviation of PEFT's deltas from the factors in the spool.

    Raises CheckpointError if a deviation is larger than the rounding of the stored factors, or a
    module is missing.
    """
    expected_modules = {module.name: module for module in modules}
    worst, seen = 0.0, set()
    with progress.bar("Checking with PEFT", len(modules)) as bar:
        for name, loaded in peft_deltas(base.config, folder):
            b, a = factorizer.factors(expected_modules[name], factorizer.ranks[name])
            expected = b @ a
            loaded[: expected.shape[0]] -= expected
            deviation = _norm(loaded) / _norm(expected)
            # two factors, each rounded to half a unit in the last place, with slack
            allowed = 1.5 * 2 * torch.finfo(dtype).eps + 1e-5
            if not deviation <= allowed:
                raise CheckpointError(
                    f"PEFT rebuilds '{name}' {deviation:.2%} away from what was extracted; the "
                    "installed PEFT reads this adapter differently, please report it."
                )
            worst = max(worst, deviation)
            seen.add(name)
            bar.advance()
    if missing := sorted(expected_modules.keys() - seen):
        raise CheckpointError(
            f"PEFT leaves out {len(missing)} modules, '{missing[0]}' among them; the installed "
            "PEFT reads this adapter differently, please report it."
        )
    return worst


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
