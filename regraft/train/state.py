"""The state of a run, from which a killed run continues exactly.

state-000120/            written as .state-000120, synced, renamed; then the older one is deleted
  loop.json              step, stage, cursor, random states, digests of the text
  model.pt               one process: trained parameters and optimizers
  .metadata, *.distcp    several: the same, by torch's distributed checkpoint
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from regraft.errors import InputError, OutputError
from regraft.parallel import Mesh
from regraft.train.run_state import RunState, StateDict, random_states, set_random_states
from regraft.train.step.learner import Learner


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
    final = folder / f"state-{run_state.step:08d}"
    if _exists(final, mesh):
        return final  # written by a killed run, and identical because steps repeat exactly
    loop = {"run": asdict(run_state), "digests": dict(digests), "random": random_states()}
    values = _whole if mesh.size == 1 else _sharded
    _write(final, loop, lambda: values(learner, optimizers), mesh)
    if mesh.rank == 0:
        for old in _all(folder)[:-1]:
            shutil.rmtree(old)
    mesh.wait()
    return final


def save_parameters(folder: Path, step: int, learner: Learner, mesh: Mesh) -> None:
    """Write the trained parameters as they are after `step` steps into `folder`. Collective.

    Those of the same step from a killed run are replaced. Raises OutputError as `save`.
    """
    final = folder / f"state-{step:08d}"
    if mesh.rank == 0:
        shutil.rmtree(final, ignore_errors=True)
    mesh.wait()
    values = _parameters if mesh.size == 1 else _sharded_parameters
    _write(final, {"step": step}, lambda: {"model": values(learner)}, mesh)
    mesh.wait()


def load_parameters(folder: Path, step: int, learner: Learner, mesh: Mesh) -> None:
    """Put what `save_parameters` wrote into the learner. Collective.

    Raises InputError where it is damaged.
    """
    path = folder / f"state-{step:08d}"
    try:
        if mesh.size == 1:
            stored = _read_whole(path)["model"]
            for name, parameter in _parameters(learner).items():
                parameter.copy_(stored[name])
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        from regraft.train.sharded_state import load_sharded

        values = {"model": _sharded_parameters(learner)}
        load_sharded(values, path)
        set_model_state_dict(
            learner, values["model"],
            options=StateDictOptions(strict=False, ignore_frozen_params=True),
        )  # fmt: skip
    except (OSError, *_DAMAGED) as error:
        raise _damaged(path, error) from error


def keep_only(folder: Path, steps: Collection[int], mesh: Mesh) -> None:
    """Delete the states in `folder` of all other steps. Collective."""
    if mesh.rank == 0:
        kept = {f"state-{step:08d}" for step in steps}
        for path in _all(folder):
            if path.name not in kept:
                shutil.rmtree(path)
    mesh.wait()


def _write(
    final: Path, loop: Mapping[str, object], values: Callable[[], StateDict], mesh: Mesh
) -> None:
    """Write a state in a hidden folder beside `final` and rename it. Collective."""
    folder, staging = final.parent, final.with_name(f".{final.name}")
    text = json.dumps(loop, indent=1) + "\n"
    try:
        if mesh.rank == 0:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            (staging / "loop.json").write_text(text, encoding="utf-8")
        mesh.wait()
        if mesh.size == 1:
            torch.save(values(), staging / "model.pt")
        else:
            from regraft.train.sharded_state import save_sharded

            save_sharded(values(), staging)
        mesh.wait()
        if mesh.rank == 0:
            _sync(staging)
            staging.rename(final)
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


def _exists(path: Path, mesh: Mesh) -> bool:
    """Whether the first process sees the path: another node may see a shared disk a minute late."""
    return bool(int(mesh.sum(torch.tensor(int(mesh.rank == 0 and path.exists())))))


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
        raise _damaged(state, error) from error


_DAMAGED = (ValueError, KeyError, TypeError, EOFError, RecursionError, AttributeError,
            pickle.UnpicklingError)  # fmt: skip


def _damaged(state: Path, error: Exception) -> InputError:
    first = (str(error).splitlines() or [""])[0]
    return InputError(
        f"The training state {state} is damaged or was not written by regraft "
        f"({type(error).__name__}: {first}); start again with --overwrite."
    )


def _load(
    state: Path, learner: Learner, optimizers: list[torch.optim.Optimizer], mesh: Mesh
) -> tuple[RunState, dict[str, str]]:
    loop = json.loads((state / "loop.json").read_text(encoding="utf-8"))
    if mesh.size == 1:
        whole = _read_whole(state)
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
    set_random_states(loop["random"])
    return RunState.from_json(loop["run"]), loop["digests"]


def _read_whole(state: Path) -> StateDict:
    try:
        # to the CPU: on a GPU Adam's step counter would be read back twice a parameter
        return torch.load(state / "model.pt", map_location="cpu", weights_only=True)
    except RuntimeError as error:  # a truncated file
        raise ValueError(str(error)) from error


_WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "file write failed")
"""Words in the message of torch.save where it could not write."""


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*"))


def _parameters(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in learner.trained().items()}


def _whole(learner: Learner, optimizers: list[torch.optim.Optimizer]) -> StateDict:
    return {
        "model": _parameters(learner),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }


def _sharded(learner: Learner, optimizers: list[torch.optim.Optimizer]) -> StateDict:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    fresh = [optimizer for optimizer in optimizers if not optimizer.state]
    model, optim = get_state_dict(
        learner, optimizers, options=StateDictOptions(ignore_frozen_params=True)
    )
    _clear_state(fresh)
    return {"model": model, "optimizers": optim}


def _sharded_parameters(learner: Learner) -> StateDict:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(ignore_frozen_params=True)
    return dict(get_model_state_dict(learner, options=options))


def _clear_state(optimizers: list[torch.optim.Optimizer]) -> None:
    """Undo the step without gradients by which torch fills the state of a fresh optimizer; Adam
    would count it."""
    for optimizer in optimizers:
        optimizer.state.clear()


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
