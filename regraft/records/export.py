"""`ExportRecord`: the value of `regraft.record` in a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regraft.records.common import SCHEMA_VERSION, AdapterFiles, ContextRecord, ModelRecord, Plain


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """A model or adapter as a GGUF file. It is in the file, under the key `regraft.record`.

    model: the model, of an adapter its base. adapter: None for a model. context: RoPE and length
    of the result. rescaled: modules whose B was multiplied so that all have one alpha.
    tensors, bytes, lost_to_rounding (||error|| / ||weights||): known when it is written, so not in
    the file itself. In a dry run `plan` states what would be done.
    """

    model: ModelRecord
    adapter: AdapterFiles | None
    context: ContextRecord
    dtype: str
    arguments: dict[str, Plain]
    versions: dict[str, str]
    alpha: float | None = None
    rescaled: int = 0
    tensors: int | None = None
    bytes: int | None = None
    lost_to_rounding: float | None = None
    plan: dict[str, Plain] | None = None
    kind: Literal["export"] = "export"
    schema_version: int = SCHEMA_VERSION
