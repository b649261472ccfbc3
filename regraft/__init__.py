"""regraft: extract long context from a Llama-3 model as a LoRA, and put it into its relatives.

    import regraft

    regraft.extract_lora("base", "extended", "adapter", rank=64)
    regraft.apply_lora("adapter", "derivative", "graft")
    regraft.merge_models("recipe.yaml", "merged")

These are the functions behind the command line, with the same arguments; each returns the record
that it also writes. Nothing heavy is imported until one of them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from regraft.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from regraft.adapters.apply.apply import apply_lora
    from regraft.adapters.extract.extract import extract_lora
    from regraft.adapters.inspect.inspect import inspect_model
    from regraft.adapters.reader import Adapter
    from regraft.checkpoint.read.source import Checkpoint
    from regraft.data.build.job import build_data
    from regraft.demo.job import run_demo
    from regraft.errors import CheckpointError, InputError, LineageError, OutputError, RegraftError
    from regraft.evaluate.job import evaluate_models
    from regraft.export.job import export_gguf
    from regraft.graft.job import graft_model
    from regraft.merge.job import merge_models
    from regraft.push import push_output
    from regraft.rope import ContextSpec
    from regraft.theta import theta_for
    from regraft.train.estimate.plan import plan_training
    from regraft.train.job import train_model
    from regraft.train.theta_probe import probe_theta

_MODULES = {
    "Adapter": "regraft.adapters.reader:Adapter",
    "Checkpoint": "regraft.checkpoint.read.source:Checkpoint",
    "CheckpointError": "regraft.errors:CheckpointError",
    "ContextSpec": "regraft.rope:ContextSpec",
    "InputError": "regraft.errors:InputError",
    "LineageError": "regraft.errors:LineageError",
    "OutputError": "regraft.errors:OutputError",
    "RegraftError": "regraft.errors:RegraftError",
    "apply_lora": "regraft.adapters.apply.apply:apply_lora",
    "build_data": "regraft.data.build.job:build_data",
    "evaluate_models": "regraft.evaluate.job:evaluate_models",
    "export_gguf": "regraft.export.job:export_gguf",
    "extract_lora": "regraft.adapters.extract.extract:extract_lora",
    "graft_model": "regraft.graft.job:graft_model",
    "inspect_model": "regraft.adapters.inspect.inspect:inspect_model",
    "merge_models": "regraft.merge.job:merge_models",
    "plan_training": "regraft.train.estimate.plan:plan_training",
    "probe_theta": "regraft.train.theta_probe:probe_theta",
    "push_output": "regraft.push:push_output",
    "run_demo": "regraft.demo.job:run_demo",
    "theta_for": "regraft.theta:theta_for",
    "train_model": "regraft.train.job:train_model",
}

__all__ = [
    "Adapter",
    "Checkpoint",
    "CheckpointError",
    "ContextSpec",
    "InputError",
    "LineageError",
    "OutputError",
    "RegraftError",
    "__version__",
    "apply_lora",
    "build_data",
    "evaluate_models",
    "export_gguf",
    "extract_lora",
    "graft_model",
    "inspect_model",
    "merge_models",
    "plan_training",
    "probe_theta",
    "push_output",
    "run_demo",
    "theta_for",
    "train_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'regraft' has no attribute '{name}'")
    module, _, attribute = _MODULES[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
