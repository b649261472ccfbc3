"""What commands of regraft import, without starting CUDA, which would not survive a fork."""

from __future__ import annotations

import gc
import importlib

from regraft.shell.process import set_environment

_NAMES = (
    "torch", "matplotlib.figure", "rich.console", "rich.table", "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama", "regraft.cli", "regraft.adapters.apply.apply",
    "regraft.adapters.extract.extract", "regraft.evaluate.assemble", "regraft.evaluate.cells",
    "regraft.evaluate.cost", "regraft.evaluate.job", "regraft.evaluate.report.files",
    "regraft.merge.job", "regraft.train.job", "regraft.train.sharded_state",
)  # fmt: skip

set_environment()
for _name in _NAMES:
    importlib.import_module(_name)
gc.freeze()  # or every collection of a fork goes through all that was imported
