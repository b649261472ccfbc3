"""Task arithmetic and its sparse relatives: base + lambda * a weighted sum of deltas.

    name              keeps of each delta          signs    paper
    task_arithmetic   all                          all      Editing models (2212.04089)
    ties              the largest                  elected  TIES-Merging (2306.01708)
    dare_linear       a random draw                all      Language models are super Mario
    dare_ties         a random draw                elected  (2311.03099)
    breadcrumbs       all but the extremes         all      Model breadcrumbs (2312.06795)
    breadcrumbs_ties  all but the extremes         elected
    della_linear      a draw favouring the large   all      DELLA-Merging (2406.11617)
    della             a draw favouring the large   elected

Parameters, defaults and results are mergekit's. A delta is sparsified; with `rescale` it is scaled
back to its L1 norm (DARE's paper divides by the density instead); it is multiplied by its weight.
With elected signs, the sign of the weighted sum wins (zero elects plus) and entries of the other
sign are dropped. With `normalize` the sum is divided by the weights of the entries in it, so where
only one delta has an entry, it is taken at full size whatever its weight. `lambda` comes last.

Two rules that mergekit does not have: of equal magnitudes at a threshold the lowest flat indices
are selected; weights that sum to zero, but for rounding, divide by 1. `int8_mask` has no effect; it
is accepted because mergekit's recipes have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.merge.methods.blockwise.reduce import first_row
from regraft.merge.methods.blockwise.sparsify import (
    Sparsifier,
    draw,
    draw_by_rank,
    trim,
    trim_both_ends,
)
from regraft.merge.methods.linear import NEGLIGIBLE, vanishes
from regraft.merge.methods.parameter import Fraction, PerInput
from regraft.merge.methods.registry import method

Variant = Literal["mergekit", "paper", "peft"]


def add_deltas(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool, scale: float
) -> Tensor:
    """base + scale * sum w_i d_i; the sum is divided by sum w_i if `normalize` and that is not
    0."""
    factor = scale / math.fsum(weights) if normalize and not vanishes(weights) else scale
    merged = torch.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        merged += delta * weight
    return merged.mul_(factor).add_(base)


def elect_and_add(
    base: Tensor,
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    normalize: bool,
    scale: float,
    variant: Variant = "mergekit",
) -> Tensor:
    """`add_deltas` over the entries of the elected sign only, element by element.

    variant: 'mergekit' elects by the weighted deltas and divides by the sum of the weights of the
    entries added; 'peft' and 'paper' elect by the unweighted deltas and divide by their number.
    """
    weighted_vote = variant == "mergekit"
    plus, minus, votes, plus_shares, minus_shares = (torch.zeros_like(base) for _ in range(5))
    for delta, weight in zip(deltas, weights, strict=True):
        vote = delta * weight if weighted_vote else delta
        up, down = vote.clamp_min(0), vote.clamp_max(0)
        if not weighted_vote:
            votes += vote
            up, down = up.mul_(weight), down.mul_(weight)
        plus += up
        minus += down
        if normalize:
            share = weight if weighted_vote else 1.0
            sign = vote.sign()
            plus_shares += sign.clamp_min(0).mul_(share)
            minus_shares -= sign.clamp_max(0).mul_(share)
    # The sign of plus + minus is exact; that of a running sum over all votes is not.
    elected = (plus + minus if weighted_vote else votes).ge_(0)
    other = 1 - elected
    merged = plus.mul_(elected).add_(minus.mul_(other))
    if normalize:
        shares = plus_shares.mul_(elected).add_(minus_shares.mul_(other))
        least = NEGLIGIBLE * math.fsum(map(abs, weights)) if weighted_vote else 0.5
        shares = torch.nn.functional.hardshrink(shares, least)
        merged /= shares.add_(shares.abs().le_(0))
    return merged.mul_(scale).add_(base)


def _check_variant(weight: Sequence[float], variant: Variant) -> None:
    if variant == "paper" and any(w != 1 for w in weight):
        raise InputError(
            "the paper's TIES has no weights: set every weight to 1 and use lambda, "
            "or choose the variant mergekit or peft"
        )


def _check_epsilon(density: Sequence[float], epsilon: Sequence[float]) -> None:
    for share, half_width in zip(density, epsilon, strict=True):
        if 0 < share < 1 and not half_width < min(share, 1 - share):
            raise InputError(
                f"density {share:g} and epsilon {half_width:g} give probabilities outside (0, 1): "
                "density - epsilon and density + epsilon must lie inside"
            )


def merge_deltas(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float],
    density: PerInput[Fraction] = (1.0,),
    gamma: PerInput[Fraction] = (0.01,),
    epsilon: PerInput[Fraction] = (0.15,),
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,
    int8_mask: bool = False,
    variant: Variant = "mergekit",
    elect: bool,
    state: Sparsifier | None,
    offset: int,
) -> Tensor:
    """All methods of the table: sparsify each delta, elect signs where `elect`, add.

    state: the sparsifier, which was prepared from density, gamma, epsilon and rescale; None where
    deltas are not sparsified.
    """
    deltas = [tensor - base for tensor in tensors]
    if state is not None:
        row = first_row(base, offset)
        sparse = [s.apply(d, row) for s, d in zip(state.schemes, deltas, strict=True)]
        deltas = [d if f == 1 else d * f for d, f in zip(sparse, state.factors, strict=True)]
    if elect:
        return elect_and_add(base, deltas, weight, normalize, lambda_, variant)
    return add_deltas(base, deltas, weight, normalize, lambda_)


@dataclass(frozen=True)
class _Row:
    """One method. sparsify: prepares its sparsifier; elect: whether signs are elected; normalize,
    rescale: their defaults; extra: a parameter besides the shared ones; check: of parameters."""

    name: str
    arxiv: str
    sparsify: Callable[..., Sparsifier] | None
    elect: bool
    normalize: bool
    rescale: bool
    doc: str
    extra: str | None = None
    check: Callable[..., None] | None = None


_DRAW = "Keep each entry of a delta with probability `density`"
_TRIM = "Drop the `gamma` largest share of a delta and keep the `density` share below it"
_RANK = (
    "Keep the entries of a row with probabilities from density - epsilon (the smallest) to density "
    "+ epsilon (the largest)"
)
_TIES = """\
Trim each delta to its largest entries, elect a sign per element, merge those that have it.

Three things go by this name. `variant` 'mergekit': weights vote and divide. 'peft': the unweighted
deltas vote and their number divides, weights only scale. 'paper': no weights. The paper gives an
element whose votes sum to zero the tensor's majority sign; here it is plus."""
_TABLE = (
    _Row("task_arithmetic", "2212.04089", None, False, False, False,
         "base + lambda * sum w_i (model_i - base). `density` and `rescale` change nothing, as in "
         "mergekit."),
    _Row("ties", "2306.01708", trim, True, True, False, _TIES, "variant", _check_variant),
    _Row("dare_linear", "2311.03099", draw, False, False, True, f"{_DRAW}; add all deltas."),
    _Row("dare_ties", "2311.03099", draw, True, False, True, f"{_DRAW}; elect signs."),
    _Row("breadcrumbs", "2312.06795", trim_both_ends, False, False, False,
         f"{_TRIM}; add all.", "gamma"),
    _Row("breadcrumbs_ties", "2312.06795", trim_both_ends, True, False, False,
         f"{_TRIM}; elect signs.", "gamma"),
    _Row("della_linear", "2406.11617", draw_by_rank, False, False, True,
         f"{_RANK}; add all deltas.", "epsilon", _check_epsilon),
    _Row("della", "2406.11617", draw_by_rank, True, True, True,
         f"{_RANK}; elect signs.", "epsilon", _check_epsilon),
)  # fmt: skip
_SHARED = ("weight", "density", "lambda", "normalize", "rescale", "int8_mask")

for _row in _TABLE:
    method(
        _row.name,
        paper=f"arXiv {_row.arxiv}",
        inputs=(0, None),
        prepare=_row.sparsify,
        check=_row.check,
        symmetric=_row.sparsify not in (draw, draw_by_rank),
        parameters=(*_SHARED, _row.extra) if _row.extra else _SHARED,
        defaults={"normalize": _row.normalize, "rescale": _row.rescale},
        constants={"elect": _row.elect},
        doc=_row.doc,
    )(merge_deltas)
