"""The plan of a merge into an adapter: rank, files, memory and time, from headers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch

from regraft.adapters.serving import PORTABLE_CAP
from regraft.merge.inputs.inputs import Inputs
from regraft.merge.native.plan import Output, Plan
from regraft.merge.recipe.recipe import Recipe

# Measured on one core: QR and SVD of factors in float64, the randomised SVD in float32.
_OPERATIONS_PER_SECOND = 8e9
_SVD_PASSES = 10
_TORCH_BYTES = 600 << 20


@dataclass(frozen=True)
class AdapterPlan:
    """dense: whether merged matrices are made and decomposed, rather than factors added.

    dtype: of the written factors. ranks: the highest of each changed output, which a dense one
    has. peak_bytes, seconds: about.
    """

    dense: bool
    dtype: torch.dtype
    ranks: dict[str, int]
    weight_bytes: int
    peak_bytes: int
    seconds: float

    @property
    def rank(self) -> int:
        """The highest rank."""
        return max(self.ranks.values())


def plan_adapter(recipe: Recipe, inputs: Inputs, plan: Plan) -> AdapterPlan:
    """The plan of `into_adapter.write`."""
    dense = recipe.body.space != "core" and plan.method.name != "task_arithmetic"
    dtype = _factor_dtype(recipe, inputs)
    limit = PORTABLE_CAP if dense else math.inf
    ranks = {out.name: int(min(out.adapter_rank, limit)) for out in plan.changed}
    highest = max(ranks.values())
    padded = highest if highest <= PORTABLE_CAP else 0
    numbers = [sum(out.shape) * max(ranks[out.name], padded) for out in plan.changed]
    return AdapterPlan(
        dense=dense,
        dtype=dtype,
        ranks=ranks,
        weight_bytes=sum(numbers) * dtype.itemsize,
        peak_bytes=_TORCH_BYTES + max(_memory(out, dense) for out in plan.changed),
        seconds=sum(_operations(out, dense) for out in plan.changed) / _OPERATIONS_PER_SECOND,
    )


def _factor_dtype(recipe: Recipe, inputs: Inputs) -> torch.dtype:
    """The dtype of the written factors: the recipe's, else one that holds the factors of all input
    adapters without rounding."""
    if recipe.out_dtype is not None:
        return getattr(torch, recipe.out_dtype)
    dtypes = [one.adapter.dtype for one in inputs if one.adapter is not None]
    return reduce(torch.promote_types, dtypes)


def _memory(output: Output, dense: bool) -> int:
    """Bytes of all inputs' changes, the merged one and its decomposition, or of the factors side by
    side, their QR and the result in float64."""
    if dense:
        return 4 * math.prod(output.shape) * (2 * len(output.inputs) + 3)
    return 3 * 8 * sum(output.shape) * output.adapter_rank


def _operations(output: Output, dense: bool) -> float:
    rank = output.adapter_rank
    factors = 8 * sum(output.shape) * rank**2
    return factors + (2 * _SVD_PASSES * math.prod(output.shape) * rank if dense else 0)
