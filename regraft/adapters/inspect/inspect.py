"""`inspect_model`: describe one model or adapter, or compare two."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from regraft.adapters.folder import CONFIG
from regraft.adapters.inspect.compare_adapters import (
    compare_adapter_with_checkpoint,
    compare_adapters,
)
from regraft.adapters.inspect.compare_checkpoints import compare_checkpoints
from regraft.adapters.inspect.comparisons import (
    AdapterComparison,
    CheckpointComparison,
    GraftInspection,
)
from regraft.adapters.inspect.describe_adapter import describe_adapter
from regraft.adapters.inspect.describe_checkpoint import describe_checkpoint
from regraft.adapters.inspect.descriptions import AdapterDescription, CheckpointDescription
from regraft.adapters.inspect.intruders import adapter_intruders, checkpoint_intruders
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.device import full_precision, pick_device
from regraft.errors import CheckpointError, InputError

Inspection = (
    CheckpointDescription
    | AdapterDescription
    | CheckpointComparison
    | AdapterComparison
    | GraftInspection
)


@full_precision()
def inspect_model(
    path: str, other: str | None = None, *, intruders: bool = False, device: str = "auto"
) -> Inspection:
    """Describe the model or adapter at `path`, or compare it with the one at `other`.

    The class of the result depends on what the folders hold. Two checkpoints are read whole,
    tensor by tensor; everything else takes seconds. intruders: count the intruder directions that
    the change makes, of two checkpoints or an adapter and a checkpoint; that decomposes every
    changed projection twice. device: where matrices are decomposed.

    Raises CheckpointError (neither model nor adapter, broken files, NaN), InputError (an adapter
    that is no plain LoRA; device; intruders of anything else).
    """
    if intruders and other is None:
        raise InputError("--intruders compares two models, or an adapter with one; give OTHER.")
    compute_device = pick_device(device)
    with ExitStack() as stack:
        opened = []
        for source in (path,) if other is None else (path, other):
            model = _open(str(source))
            if isinstance(model, Checkpoint):
                stack.enter_context(model)
            opened.append(model)
        if len(opened) == 1:
            only = opened[0]
            return (
                describe_adapter(only) if isinstance(only, Adapter) else describe_checkpoint(only)
            )
        first, second = opened
        if isinstance(first, Adapter) and isinstance(second, Adapter):
            if intruders:
                raise InputError(
                    "--intruders needs the weights that an adapter changes; give a model beside it."
                )
            return compare_adapters(first, second)
        if isinstance(first, Checkpoint) and isinstance(second, Checkpoint):
            models = compare_checkpoints(first, second, compute_device)
            if not intruders:
                return models
            return replace(models, intruders=checkpoint_intruders(first, second, compute_device))
        lora, target = (first, second) if isinstance(first, Adapter) else (second, first)
        assert isinstance(lora, Adapter)
        assert isinstance(target, Checkpoint)
        graft = compare_adapter_with_checkpoint(lora, target)
        if not (intruders and graft.fits):
            return graft
        return replace(graft, intruders=adapter_intruders(lora, target, compute_device))


def _open(source: str) -> Checkpoint | Adapter:
    """Open the model or adapter in a folder or Hub repository; one that is both is a model.

    Raises CheckpointError for a folder that is neither, InputError for an adapter that is no LoRA.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", CONFIG)):
            raise CheckpointError(
                f"{source} is neither a model (no config.json) nor an adapter (no "
                f"{CONFIG}); give a folder that holds one."
            )
        if not (folder / "config.json").is_file():
            return Adapter.open(source)
    try:
        return Checkpoint.open(source)
    except CheckpointError as model_error:
        try:
            return Adapter.open(source)
        except CheckpointError:
            raise model_error from None
