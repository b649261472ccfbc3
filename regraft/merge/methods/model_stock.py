"""Model Stock: All we need is just a few fine-tuned models (arXiv 2403.19522)."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from regraft.merge.methods.blockwise.blocks import Blocks
from regraft.merge.methods.blockwise.reduce import Gram, gram_rows
from regraft.merge.methods.registry import method

_LEAST_PRODUCT = 1e-6  # lower bound of a product of norms and of the denominator, as in mergekit


def _ratio(gram: list[list[Tensor]]) -> Tensor:
    """t = N c / (1 + (N - 1) c), c the mean cosine of pairs of deltas; 0, which gives the base,
    where the denominator vanishes. gram[i][j], j <= i: the deltas' inner products."""
    count = len(gram)
    norms = [gram[i][i].sqrt() for i in range(count)]
    cosines = [
        (gram[i][j] / (norms[i] * norms[j]).clamp_min(_LEAST_PRODUCT)).clamp(-1, 1)
        for j, i in combinations(range(count), 2)
    ]
    cosine = torch.stack(cosines).mean(0)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < _LEAST_PRODUCT
    return (count * cosine / denominator.masked_fill(singular, 1.0)).masked_fill(singular, 0.0)


def _tensor_ratio(blocks: Blocks, shape: tuple[int, ...], filter_wise: bool) -> Tensor | None:
    if filter_wise and len(shape) > 1:
        return None
    gram: Gram | None = None
    for tensors, base in blocks():
        assert base is not None
        gram = gram or Gram(len(tensors))
        gram.add([t - base for t in tensors])
    assert gram is not None
    return _ratio([list(row.unbind()) for row in gram.matrix()])


@method(
    "model_stock",
    paper="arXiv 2403.19522",
    inputs=(2, None),
    prepare=_tensor_ratio,
    symmetric=True,
)
def model_stock(
    tensors: list[Tensor], base: Tensor, *, filter_wise: bool = False, state: Tensor | None
) -> Tensor:
    """base + t (mean of the models - base). t follows from the angles between the deltas: of whole
    tensors, or of each row (along the last axis) if `filter_wise`."""
    deltas = [t - base for t in tensors]
    if state is None:
        columns = base.shape[-1]
        ratio = _ratio(gram_rows([d.reshape(-1, columns) for d in deltas]))
        state = ratio.view(*base.shape[:-1], 1)
    mean = torch.zeros_like(base)
    for delta in deltas:
        mean += delta
    return mean.mul_((state / len(tensors)).to(base.dtype)).add_(base)
