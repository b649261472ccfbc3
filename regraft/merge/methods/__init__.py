"""The maths of merging: plain functions on tensors, found by name.

    from regraft.merge.methods import get, merge_tensors, names
    merged = merge_tensors("ties", [a, b], base, {"weight": [1.0, 0.5], "density": 0.3})

`registry` says how a method is declared and called, `parameter` what it takes, `blocks` what it
walks over. Every other file is one family of methods, or what several share (`top_k`: exact
thresholds, `reduce`: sums, `noise`: reproducible randomness).
"""

from regraft.merge.methods.blocks import Blocks, StoredBlocks
from regraft.merge.methods.parameter import REQUIRED, Parameter
from regraft.merge.methods.registry import Method, get, merge_tensors, method, names

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
