"""The demo: the recipe of this folder, and its run as a job of `regraft graft`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.errors import InputError

if TYPE_CHECKING:
    from regraft.document import Document
    from regraft.graft.record import JobRecord

RECIPE = Path(__file__).with_name("recipe.yaml")
STORY = (
    "A base was trained at 64 tokens and extended to 1k. A fine-tune of the base, shouter, learned "
    "a skill of its own: to answer in upper case. What the extension changed was extracted as a "
    "LoRA and grafted on shouter."
)
SEED = 2  # of every training in the recipe
_THREADS = 2


def run_demo(
    out: str | Path,
    *,
    seed: int = SEED,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> JobRecord:
    """Run the demo's recipe into the folder `out`, as `graft_model` would. Returns its record.

    It takes about two minutes of two cores and continues where it was interrupted. seed: of the
    models' trainings; the same one gives the same weights and scores on one machine and library
    version. resume: continue with another seed than before. dry_run: check and plan only.

    Raises InputError if `out` holds another job and neither `resume` nor `overwrite` is given, and
    for a seed that is negative or 2^63 or more.
    """
    if "torch" not in sys.modules:
        # Threads that spin while they wait slow a shared machine down up to ten times.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    from regraft.graft.job import graft_model

    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed} cannot be used; give a number from 0 to 2^63 - 1.")
    threads = torch.get_num_threads()
    if limited := threads > _THREADS:  # setting even the present number changes MKL's rounding
        torch.set_num_threads(_THREADS)
    try:
        return graft_model(
            demo_recipe(seed), out, device="cpu", overwrite=overwrite, resume=resume,
            dry_run=dry_run,
        )  # fmt: skip
    finally:
        if limited:
            torch.set_num_threads(threads)


def demo_recipe(seed: int = SEED) -> Document:
    """The recipe, with `seed` for every training."""
    from regraft.document import Document

    text = re.sub(rf"\bseed: {SEED}\b", f"seed: {seed}", RECIPE.read_text(encoding="utf-8"))
    return Document("the demo's recipe", text)
