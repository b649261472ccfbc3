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

Parameters, defaults and results are mergekit's: a delta is sparsified, if `rescale` scaled back to
its L1 norm (not, as DARE's paper has it, by 1 / density), multiplied by its weight; where signs are
elected, the sign of the weighted sum wins (a zero sum elects plus) and the others are dropped; with
`normalize` the sum is divided by the weights that took part in it; then `lambda`. So a delta that
stands alone is taken at full size, whatever its weight, where `normalize` is on.

Two rules where mergekit has none: of equal magnitudes at a threshold the lowest flat indices stay;
weights that took part and sum to zero, but for rounding, divide by 1.
`int8_mask` is there for mergekit's recipes and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.merge.methods.linear import NEGLIGIBLE, vanishes
from regraft.merge.methods.reduce import first_row
from regraft.merge.methods.registry import Fraction, PerInput, method
from regraft.merge.methods.sparsify import Sparsifier, draw, draw_by_rank, trim, trim_both_ends

Variant = Literal["mergekit", "paper", "peft"]


def add_deltas(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool, scale: float
) -> Tensor:
    """base + scale * sum w_i d_i, divided by sum w_i if `normalize` and the sum is not zero."""
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
    """The same over the deltas of the elected sign only, element by element.

    `variant` says what elects and what divides: 'mergekit' the weighted deltas, and the sum of the
    weights that took part; 'peft' and 'paper' the deltas themselves, and the number of those.
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
    # The sign of plus + minus is exact, which that of a running sum of all votes would not be.
    elected = (plus + minus if weighted_vote else votes).ge_(0)
    other = 1 - elected
    merged = plus.mul_(elected).add_(minus.mul_(other))
    if normalize:
        shares = plus_shares.mul_(elected).add_(minus_shares.mul_(other))
        least = NEGLIGIBLE * math.fsum(map(abs, weights)) if weighted_vote else 0.5
        shares = torch.nn.functional.hardshrink(shares, least)
        merged /= shares.add_(shares.abs().le_(0))
    return merged.mul_(scale).add_(base)


def _sparse(tensors: list[Tensor], base: Tensor, state: Sparsifier, offset: int) -> list[Tensor]:
    row = first_row(base, offset)
    kept = [s.keep(t - base, row) for s, t in zip(state.schemes, tensors, strict=True)]
    return [d if f == 1 else d * f for d, f in zip(kept, state.factors, strict=True)]


@method("task_arithmetic", paper="arXiv 2212.04089", inputs=(0, None), symmetric=True)
def task_arithmetic(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float],
    density: PerInput[Fraction] = (1.0,),
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,
    int8_mask: bool = False,
) -> Tensor:
    """base + lambda * sum w_i (model_i - base). `density` and `rescale` change nothing, as in
    mergekit."""
    return add_deltas(base, [t - base for t in tensors], weight, normalize, lambda_)


def _check_variant(weight: Sequence[float], variant: Variant) -> None:
    if variant == "paper" and any(w != 1 for w in weight):
        raise InputError(
            "the paper's TIES has no weights: set every weight to 1 and use lambda, "
            "or choose the variant mergekit or peft"
        )


@method(
    "ties",
    paper="arXiv 2306.01708",
    inputs=(0, None),
    prepare=trim,
    check=_check_variant,
    symmetric=True,
)
def ties(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float],
    density: PerInput[Fraction] = (1.0,),
    lambda_: float = 1.0,
    normalize: bool = True,
    rescale: bool = False,
    int8_mask: bool = False,
    variant: Variant = "mergekit",
    state: Sparsifier,
    offset: int,
) -> Tensor:
    """Trim each delta to its largest entries, elect a sign per element, merge those that have it.

    Three things go by this name. `variant` 'mergekit': weights vote and divide. 'peft': the
    unweighted deltas vote and their number divides, weights only scale. 'paper': no weights.
    The paper gives an element whose votes sum to zero the tensor's majority sign; here it is plus.
    """
    deltas = _sparse(tensors, base, state, offset)
    return elect_and_add(base, deltas, weight, normalize, lambda_, variant)


@method("dare_linear", paper="arXiv 2311.03099", inputs=(0, None), prepare=draw)
def dare_linear(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float],
    density: PerInput[Fraction] = (1.0,),
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    int8_mask: bool = False,
    state: Sparsifier,
    offset: int,
) -> Tensor:
    """Keep each entry of a delta with probability `density`; add all deltas."""
    deltas = _sparse(tensors, base, state, offset)
    return add_deltas(base, deltas, weight, normalize, lambda_)


@method("dare_ties", paper="arXiv 2311.03099", inputs=(0, None), prepare=draw)
def dare_ties(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float],
    density: PerInput[Fraction] = (1.0,),
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    int8_mask: bool = False,
    state: Sparsifier,
    offset: int,
) -> Tensor:
    """Keep each entry of a delta with probability `density`; elect signs."""
    deltas = _sparse(tensors, base, state, offset)
    return elect_and_add(base, deltas, weight, normalize, lambda_)


@method(
    "breadcrumbs",
    paper="arXiv 2312.06795",
    inputs=(0, None),
    prepare=trim_both_ends,
    symmetric=True,
)
def breadcrumbs(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float],
    density: PerInput[Fraction] = (1.0,),
    gamma: PerInput[Fraction] = (0.01,),
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,
    int8_mask: bool = False,
    state: Sparsifier,
    offset: int,
) -> Tensor:
    """Drop the `gamma` largest share of a delta and keep the `density` share below it; add all."""
    deltas = _sparse(tensors, base, state, offset)
    return add_deltas(base, deltas, weight, normalize, lambda_)


@method(
    "breadcrumbs_ties",
    paper="arXiv 2312.06795",
    inputs=(0, None),
    prepare=trim_both_ends,
    symmetric=True,
)
def breadcrumbs_ties(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float],
    density: PerInput[Fraction] = (1.0,),
    gamma: PerInput[Fraction] = (0.01,),
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,
    int8_mask: bool = False,
    state: Sparsifier,
    offset: int,
) -> Tensor:
    """Drop the `gamma` largest share of a delta and keep the `density` share below it; elect
    signs."""
    deltas = _sparse(tensors, base, state, offset)
    return elect_and_add(base, deltas, weight, normalize, lambda_)


def _check_spread(density: Sequence[float], epsilon: Sequence[float]) -> None:
    for share, spread in zip(density, epsilon, strict=True):
        if 0 < share < 1 and not spread < min(share, 1 - share):
            raise InputError(
                f"density {share:g} and epsilon {spread:g} give probabilities outside (0, 1): "
                "density - epsilon and density + epsilon must lie inside"
            )


@method(
    "della_linear",
    paper="arXiv 2406.11617",
    inputs=(0, None),
    prepare=draw_by_rank,
    check=_check_spread,
)
def della_linear(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float],
    density: PerInput[Fraction] = (1.0,),
    epsilon: PerInput[Fraction] = (0.15,),
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    int8_mask: bool = False,
    state: Sparsifier,
    offset: int,
) -> Tensor:
    """Keep the entries of a row with probabilities from density - epsilon (the smallest) to
    density + epsilon (the largest); add all deltas."""
    deltas = _sparse(tensors, base, state, offset)
    return add_deltas(base, deltas, weight, normalize, lambda_)


@method(
    "della",
    paper="arXiv 2406.11617",
    inputs=(0, None),
    prepare=draw_by_rank,
    check=_check_spread,
)
def della(
    tensors: list[Tensor],
    base: Tensor,
    *,
    weight: PerInput[float],
    density: PerInput[Fraction] = (1.0,),
    epsilon: PerInput[Fraction] = (0.15,),
    lambda_: float = 1.0,
    normalize: bool = True,
    rescale: bool = True,
    int8_mask: bool = False,
    state: Sparsifier,
    offset: int,
) -> Tensor:
    """Keep the entries of a row with probabilities from density - epsilon (the smallest) to
    density + epsilon (the largest); elect signs."""
    deltas = _sparse(tensors, base, state, offset)
    return elect_and_add(base, deltas, weight, normalize, lambda_)
