"""regraft: lift a capability off one model and graft it onto its relatives.

    import regraft
    regraft.extract_lora("base", "extended", "adapter", rank=64)
    regraft.apply("adapter", "derivative", "graft")

The functions are those behind the command line, with the same arguments; nothing heavy is imported
until one of them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from regraft.adapters.apply.apply import apply
    from regraft.adapters.extract.extract import extract_lora
    from regraft.adapters.inspect.inspect import inspect
    from regraft.adapters.reader import Adapter
    from regraft.checkpoint.source import Checkpoint
    from regraft.errors import RegraftError
    from regraft.rope import ContextSpec, theta_report

_HOMES = {
    "Adapter": "regraft.adapters.reader",
    "Checkpoint": "regraft.checkpoint.source",
    "ContextSpec": "regraft.rope",
    "RegraftError": "regraft.errors",
    "apply": "regraft.adapters.apply.apply",
    "evaluate_models": "regraft.evaluate.job",
    "extract_lora": "regraft.adapters.extract.extract",
    "inspect": "regraft.adapters.inspect.inspect",
    "theta_report": "regraft.rope",
}
__all__ = [
    "Adapter",
    "Checkpoint",
    "ContextSpec",
    "RegraftError",
    "apply",
    "evaluate_models",
    "extract_lora",
    "inspect",
    "theta_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'regraft' has no attribute '{name}'")
    # a function of the room's own name would be hidden by the room once that is imported
    return getattr(import_module(_HOMES[name]), "evaluate" if name == "evaluate_models" else name)
