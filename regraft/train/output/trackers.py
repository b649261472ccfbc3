"""Logging to TensorBoard and Weights & Biases during a run."""

from __future__ import annotations

import importlib
import importlib.util
import uuid
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.errors import InputError
from regraft.train.recipe.schema import Body


class Trackers:
    """TensorBoard where it is installed, and Weights & Biases where the recipe has `track`.

    folder: for TensorBoard. states: for the id and files of the run in Weights & Biases. step: the
    run continues after it; later values that TensorBoard has are discarded.
    """

    def __init__(self, folder: Path, states: Path, step: int, body: Body) -> None:
        self._run: Any = _wandb_run(states, body, folder.parent.name) if body.track else None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)
        except ImportError:
            self._writer = None

    def add(self, step: int, **values: float | None) -> None:
        """Log the values that are not None."""
        known = {name: value for name, value in values.items() if value is not None}
        if self._run is not None:
            self._run.log(known, step=step)
        if self._writer is not None:
            for name, value in known.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish the run in both."""
        if self._run is not None:
            self._run.finish()
        if self._writer is not None:
            self._writer.close()


def check_tracker(body: Body) -> None:
    """Raise InputError where the package of the recipe's `track` is not installed."""
    if body.track is not None and importlib.util.find_spec(body.track) is None:
        raise InputError(
            f"track: {body.track} is not installed here; `pip install {body.track}`, or leave "
            "track out (metrics.jsonl is always written)."
        )


def save_offline_runs(states: Path, folder: Path, target: Path) -> None:
    """Move runs that Weights & Biases stored offline from `states` to `folder`, and print how to
    send them. target: the published folder."""
    for run in sorted((states / "wandb").glob("offline-run-*")):
        (folder / "wandb").mkdir(exist_ok=True)
        run.rename(folder / "wandb" / run.name)
        progress.note(f"To send the run: wandb sync {target / 'wandb' / run.name}")


def _wandb_run(states: Path, body: Body, name: str) -> Any:
    wandb: Any = importlib.import_module(body.track or "")
    states.mkdir(parents=True, exist_ok=True)
    run_id = states / "wandb-run"
    if not run_id.exists():
        run_id.write_text(uuid.uuid4().hex)
    try:
        return wandb.init(
            project="regraft", id=run_id.read_text(), name=name, resume="allow", dir=str(states),
            config=body.model_dump(),
        )  # fmt: skip
    except wandb.Error as error:
        raise InputError(
            f"Weights & Biases does not take the run ({' '.join(str(error).split())[:200]}); "
            "`wandb login`, or store it and send it later with WANDB_MODE=offline."
        ) from None
