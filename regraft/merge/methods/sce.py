"""SCE (select, calculate, erase), of FuseChat: Knowledge fusion of chat models (2408.07990)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.merge.methods.blockwise.blocks import Blocks
from regraft.merge.methods.blockwise.reduce import as_rows, first_row, row_sums, rows_and_columns
from regraft.merge.methods.blockwise.top_k import ALL, Cut, largest
from regraft.merge.methods.parameter import Fraction, Positive
from regraft.merge.methods.registry import method


@dataclass(frozen=True)
class Selection:
    """The elements that vary most between the models, and each model's share of the energy
    there."""

    cut: Cut
    shares: list[float]


def _variance(deltas: list[Tensor]) -> Tensor:
    """Across the N inputs, element by element, times N; exactly 0 where all inputs agree."""
    shifted = [d - deltas[0] for d in deltas[1:]]
    mean = torch.zeros_like(deltas[0])
    for shift in shifted:
        mean += shift
    mean /= len(deltas)
    variance = mean.square()
    for shift in shifted:
        variance += (shift - mean).square_()
    return variance


def _select(
    blocks: Blocks, shape: tuple[int, ...], select_topk: float, energy_floor: float
) -> Selection:
    rows, columns = rows_and_columns(shape)

    def variances(step: int) -> Iterator[list[Tensor]]:
        for tensors, base in blocks(step):
            assert base is not None
            yield [as_rows(_variance([t - base for t in tensors]))]

    cut = ALL
    inputs, _ = next(blocks())
    if select_topk < 1 and inputs:
        varying = sum(int(torch.count_nonzero(part[0])) for part in variances(1))
        (cut,) = largest(variances, [(0, int(varying * select_topk))], rows, columns)
    sums: list[list[float]] = []
    row = 0
    for tensors, base in blocks():
        assert base is not None
        deltas = _masked([t - base for t in tensors], cut, row)
        sums = sums or [[] for _ in deltas]
        for part, delta in zip(sums, deltas, strict=True):
            part += row_sums(as_rows(delta).double().square())
        row += as_rows(base).shape[0]
    energies = [math.fsum(part) / (rows * columns) for part in sums]
    whole = sum(energies)
    if whole <= energy_floor:
        return Selection(cut, [1 / len(energies) for _ in energies])
    return Selection(cut, [energy / whole for energy in energies])


def _masked(deltas: list[Tensor], cut: Cut, row: int) -> list[Tensor]:
    if cut is ALL:
        return deltas
    selected = cut.mask(as_rows(_variance(deltas)), row).view(deltas[0].shape)
    return [delta * selected for delta in deltas]


@method("sce", paper="arXiv 2408.07990", inputs=(0, None), prepare=_select, symmetric=True)
def sce(
    tensors: list[Tensor],
    base: Tensor,
    *,
    select_topk: Fraction = 1.0,
    int8_mask: bool = False,
    energy_floor: Positive = 1e-6,
    state: Selection,
    offset: int,
) -> Tensor:
    """Select the `select_topk` share of the elements that vary between the models, weight each
    model by the energy of its delta there, elect a sign per element (zero elects plus), and average
    the deltas of that sign.

    If the mean squares of the selected deltas sum to at most `energy_floor`, all models have the
    same weight: mergekit's rule, which applies to many real deltas; 0 follows the paper.
    `int8_mask` has no effect; it is accepted because mergekit's recipes have it.
    """
    if not tensors:
        return base
    deltas = _masked([t - base for t in tensors], state.cut, first_row(base, offset))
    plus, minus, plus_weight, minus_weight = (torch.zeros_like(base) for _ in range(4))
    elected = torch.zeros_like(base)
    for delta, share in zip(deltas, state.shares, strict=True):
        elected += delta
        sign = delta.sign()
        plus += delta.clamp_min(0).mul_(share)
        minus += delta.clamp_max(0).mul_(share)
        plus_weight += sign.clamp_min(0).mul_(share)
        minus_weight -= sign.clamp_max(0).mul_(share)
    up = elected.ge_(0)
    merged = plus.mul_(up) + minus.mul_(1 - up)
    weight = plus_weight.mul_(up) + minus_weight.mul_(1 - up)
    return merged.div_(weight.clamp_min_(1e-6)).add_(base)
