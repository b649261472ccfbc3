"""The maths of merging: plain functions on tensors, found by name.

    from regraft.merge.methods import get, merge_tensors, names
    merged = merge_tensors("ties", [a, b], base, {"weight": [1.0, 0.5], "density": 0.3})

`registry` says how a method is written and called; every other file is one family of methods, or
what several share (`select`: exact thresholds, `reduce`: sums, `noise`: reproducible randomness).
"""

from regraft.merge.methods.registry import (
    REQUIRED,
    Blocks,
    Method,
    Parameter,
    StoredBlocks,
    get,
    merge_tensors,
    method,
    names,
)

__all__ = [
    "REQUIRED",
    "Blocks",
    "Method",
    "Parameter",
    "StoredBlocks",
    "get",
    "merge_tensors",
    "method",
    "names",
]
