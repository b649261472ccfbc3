"""The state of a run, from which a killed run continues exactly.

state-000120/            written as .state-000120, synced, renamed; then the older one is deleted
  loop.json              step, stage, cursor, random states, digests of the text
  model.pt               one process: trained parameters and optimizers
  .metadata, *.distcp    several: the same, by torch's distributed checkpoint
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regraft.errors import InputError, OutputError
from regraft.parallel import Mesh
from regraft.train.record import (
    AbandonedAttempt,
    DriftRecord,
    ValidationRecord,
    validation_from_json,
)
from regraft.train.step.learner import Learner


@dataclass
class RunState:
    """The progress of a run, without weights and optimizer.

    step: optimizer steps taken, including abandoned attempts. stage: from 0. stage_step: steps
    taken in it. tokens: trained, including abandoned attempts. counts: rows taken of each source in
    the stage. stopped: why a stage ended early, by stage. validations: results in the current
    stage; validation_lines: lines of watch.jsonl. drifts: of a recovery; recovered: whether it
    reached its goal.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    tokens: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)
    abandoned: list[AbandonedAttempt] = field(default_factory=list)
    validation_lines: int = 0
    validations: list[ValidationRecord] = field(default_factory=list)
    drifts: list[DriftRecord] = field(default_factory=list)
    recovered: bool = False

    @property
    def attempt(self) -> int:
        """Number of the current attempt at the stage, from 0."""
        return sum(attempt.stage == self.stage + 1 for attempt in self.abandoned)

    @property
    def learned_steps(self) -> int:
        """Optimizer steps that led to the current weights (abandoned attempts excluded)."""
        return self.step - sum(attempt.steps for attempt in self.abandoned)

    @property
    def learned_tokens(self) -> int:
        """Tokens of `learned_steps`."""
        return self.tokens - sum(attempt.tokens for attempt in self.abandoned)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunState:
        """The inverse of `dataclasses.asdict` through JSON, whose keys are strings."""
        parts = {
            "stopped": {int(stage): reason for stage, reason in values["stopped"].items()},
            "abandoned": [AbandonedAttempt(**attempt) for attempt in values["abandoned"]],
            "validations": [validation_from_json(line) for line in values["validations"]],
            "drifts": [DriftRecord(**drift) for drift in values["drifts"]],
        }
        return cls(**{**values, **parts})


def save(
    folder: Path,
    run_state: RunState,
    digests: Mapping[str, str],
    learner: Learner,
    optimizers: list[torch.optim.Optimizer],
    mesh: Mesh,
) -> Path:
    """Write the state into `folder` and then delete older ones. Returns its path. Collective.

    Raises OutputError where it cannot be written; the previous state is then unchanged.
    """
    name = f"state-{run_state.step:08d}"
    staging, final = folder / f".{name}", folder / name
    # Read by one process: another node may see a shared disk a minute late.
    if int(mesh.sum(torch.tensor(int(mesh.rank == 0 and final.exists())))):
        return final  # written by a killed run, and identical because steps repeat exactly
    loop = {"run": asdict(run_state), "digests": dict(digests), "random": _random_states()}
    text = json.dumps(loop, indent=1) + "\n"
    try:
        if mesh.rank == 0:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            (staging / "loop.json").write_text(text, encoding="utf-8")
        mesh.wait()
        if mesh.size == 1:
            torch.save(_whole(learner, optimizers), staging / "model.pt")
        else:
            from regraft.train.sharded_state import save_sharded

            save_sharded(_sharded(learner, optimizers), staging)
        mesh.wait()
        if mesh.rank == 0:
            _sync(staging)
            staging.rename(final)
            for old in _all(folder)[:-1]:
                shutil.rmtree(old)
    except OSError as error:
        if mesh.rank == 0:
            shutil.rmtree(staging, ignore_errors=True)
        raise OutputError(
            f"The training state cannot be written to {folder} ({error.strerror or error}); the "
            "previous one is unchanged. Make room and continue with --resume."
        ) from error
    except RuntimeError as error:  # torch.save's own writer, on a full disk
        if mesh.rank == 0:
            shutil.rmtree(staging, ignore_errors=True)
        if not any(word in str(error) for word in _WRITE_FAILURES):
            raise
        raise OutputError(
            f"The training state cannot be written to {folder}, probably because the disk is full; "
            "the previous one is unchanged. Make room and continue with --resume."
        ) from error
    mesh.wait()
    return final


def latest(folder: Path) -> Path | None:
    """The newest complete state, if there is one."""
    states = _all(folder)
    return states[-1] if states else None


def load(
    state: Path, learner: Learner, optimizers: list[torch.optim.Optimizer], mesh: Mesh
) -> tuple[RunState, dict[str, str]]:
    """Restore a state into learner and optimizers. Returns the run's progress and the digests of
    its text. Collective.

    No code in the files is executed. Raises InputError where they are not as `save` wrote them.
    """
    try:
        return _load(state, learner, optimizers, mesh)
    except _DAMAGED as error:
        first = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"The training state {state} is damaged or was not written by regraft "
            f"({type(error).__name__}: {first}); start again with --overwrite."
        ) from error


_DAMAGED = (ValueError, KeyError, TypeError, EOFError, RecursionError, AttributeError,
            pickle.UnpicklingError)  # fmt: skip


def _load(
    state: Path, learner: Learner, optimizers: list[torch.optim.Optimizer], mesh: Mesh
) -> tuple[RunState, dict[str, str]]:
    loop = json.loads((state / "loop.json").read_text(encoding="utf-8"))
    if mesh.size == 1:
        # to the CPU: on a GPU Adam's step counter would be read back twice a parameter
        try:
            whole = torch.load(state / "model.pt", map_location="cpu", weights_only=True)
        except RuntimeError as error:  # a truncated file
            raise ValueError(str(error)) from error
        with torch.no_grad():
            for name, parameter in learner.trained().items():
                parameter.copy_(whole["model"][name])
        for optimizer, values in zip(optimizers, whole["optimizers"], strict=True):
            optimizer.load_state_dict(values)
    else:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        from regraft.train.sharded_state import load_sharded

        sharded = _sharded(learner, optimizers)
        load_sharded(sharded, state)
        set_state_dict(
            learner,
            optimizers,
            model_state_dict=sharded["model"],
            optim_state_dict=sharded["optimizers"],
            options=StateDictOptions(strict=False, ignore_frozen_params=True),
        )
        if loop["run"]["step"] == 0:
            _clear_state(optimizers)
    _set_random_states(loop["random"])
    return RunState.from_json(loop["run"]), loop["digests"]


_WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "file write failed")
"""Words in the message of torch.save where it could not write."""


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*"))


def _whole(learner: Learner, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    return {
        "model": {name: value.detach() for name, value in learner.trained().items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }


def _sharded(learner: Learner, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    fresh = [optimizer for optimizer in optimizers if not optimizer.state]
    model, optim = get_state_dict(
        learner, optimizers, options=StateDictOptions(ignore_frozen_params=True)
    )
    _clear_state(fresh)
    return {"model": model, "optimizers": optim}


def _clear_state(optimizers: list[torch.optim.Optimizer]) -> None:
    """Undo the step without gradients by which torch fills the state of a fresh optimizer; Adam
    would count it."""
    for optimizer in optimizers:
        optimizer.state.clear()


def _random_states() -> dict[str, Any]:
    """The generators' states as values for JSON; torch's are bytes, in base64."""
    kind, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": _encoded(torch.get_rng_state()),
        "cuda": [_encoded(state) for state in cuda],
    }


def _set_random_states(states: dict[str, Any]) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_decoded(states["torch"]))
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_decoded(state) for state in states["cuda"]])


def _encoded(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decoded(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
