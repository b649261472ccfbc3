"""Merge methods: plain functions on tensors, registered by name.

    from regraft.merge.methods import get, merge_tensors, names
    merged = merge_tensors("ties", [a, b], base, {"weight": [1.0, 0.5], "density": 0.3})

`registry` declares and calls methods, `parameter` checks their parameters, `blockwise/` has what
several methods share: row blocks, sums, exact thresholds, reproducible noise, sparsification. Every
other file is one family of methods.
"""

from regraft.merge.methods.blockwise.blocks import Blocks, StoredBlocks
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
