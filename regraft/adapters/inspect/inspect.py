"""`regraft inspect`: what a folder is, or how two are related, as a dict and as tables.

from regraft.adapters.inspect.inspect import inspect_model, tables
result = inspect_model("base", "extended")
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from regraft.adapters.inspect.adapters import relate_adapter, relate_adapters
from regraft.adapters.inspect.checkpoints import relate_checkpoints
from regraft.adapters.inspect.describe import describe_adapter, describe_checkpoint, open_any
from regraft.adapters.inspect.tables import tables
from regraft.adapters.reader import Adapter
from regraft.checkpoint.source import Checkpoint
from regraft.device import full_precision, pick_device

__all__ = ["inspect_model", "tables"]


@full_precision()
def inspect_model(path: str, other: str | None = None, *, device: str = "auto") -> dict[str, Any]:
    """What the model or adapter at `path` is; with `other`, how the two are related.

    `kind` of the result: 'checkpoint', 'adapter', 'graft' or 'merge' (a checkpoint that says what
    it was made from), 'checkpoints', 'adapters', 'checkpoint and adapter'. Two checkpoints are
    read whole, tensor by tensor; everything else takes seconds. The dict is JSON as it stands.

    Raises CheckpointError (neither model nor adapter, broken files, NaN), InputError (an adapter
    that is no plain LoRA; device).
    """
    where = pick_device(device)
    with ExitStack() as stack:
        opened = []
        for source in (path,) if other is None else (path, other):
            found = open_any(str(source))
            if isinstance(found, Checkpoint):
                stack.enter_context(found)
            opened.append(found)
        if len(opened) == 1:
            only = opened[0]
            return (
                describe_adapter(only) if isinstance(only, Adapter) else describe_checkpoint(only)
            )
        first, second = opened
        if isinstance(first, Adapter) and isinstance(second, Adapter):
            return relate_adapters(first, second)
        if isinstance(first, Adapter):
            assert isinstance(second, Checkpoint)
            return relate_adapter(first, second)
        if isinstance(second, Adapter):
            return relate_adapter(second, first)
        return relate_checkpoints(first, second, where)
