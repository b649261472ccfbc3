"""The records that regraft writes with its outputs: typed, with one schema version.

A record is a frozen dataclass. regraft.json holds an `AdapterRecord` (records/adapter.py), a
`GraftRecord` (graft.py) or a `MergeRecord` (merge.py), a GGUF file an `ExportRecord` (export.py);
training and evaluation define theirs from the same parts (train/record.py, evaluate/result.py).
records/files.py writes and reads all of them.
"""

from regraft.records.adapter import (
    AdapterRecord,
    AdapterTotals,
    CalibrationRecord,
    ContextChange,
    ExtractionRecord,
    Layout,
    MergeSource,
    ModuleRecord,
    NotCaptured,
    RankGain,
    TruncationRecord,
)
from regraft.records.common import (
    SCHEMA_VERSION,
    AdapterFiles,
    ContextRecord,
    DistanceRecord,
    ModelRecord,
    Plain,
    RelationRecord,
    RopeParameters,
)
from regraft.records.export import ExportRecord
from regraft.records.files import dump_json, read_record, to_json, write_record
from regraft.records.graft import (
    BaseRecord,
    GraftContext,
    GraftRecord,
    GraftShare,
    GuardRecord,
    TensorGraft,
)
from regraft.records.merge import (
    ChangeFigures,
    MergeContext,
    MergedAdapter,
    MergeDonor,
    MergeFigures,
    MergeInput,
    MergeRecord,
    MergeTotals,
    PairFigures,
    TensorMerge,
    TensorSource,
)
from regraft.records.push import PushedFile, PushRecord
from regraft.records.reproduce import derive_seed, versions

__all__ = [
    "SCHEMA_VERSION",
    "AdapterFiles",
    "AdapterRecord",
    "AdapterTotals",
    "BaseRecord",
    "CalibrationRecord",
    "ChangeFigures",
    "ContextChange",
    "ContextRecord",
    "DistanceRecord",
    "ExportRecord",
    "ExtractionRecord",
    "GraftContext",
    "GraftRecord",
    "GraftShare",
    "GuardRecord",
    "Layout",
    "MergeContext",
    "MergeDonor",
    "MergeFigures",
    "MergeInput",
    "MergeRecord",
    "MergeSource",
    "MergeTotals",
    "MergedAdapter",
    "ModelRecord",
    "ModuleRecord",
    "NotCaptured",
    "PairFigures",
    "Plain",
    "PushRecord",
    "PushedFile",
    "RankGain",
    "RelationRecord",
    "RopeParameters",
    "TensorGraft",
    "TensorMerge",
    "TensorSource",
    "TruncationRecord",
    "derive_seed",
    "dump_json",
    "read_record",
    "to_json",
    "versions",
    "write_record",
]
