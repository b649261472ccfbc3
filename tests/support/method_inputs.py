"""Settings and random tensors for the tests of merge methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regraft.merge.methods import get, merge_tensors

# Parameters of every method for two inputs (or the one it takes) under which it has an effect.
SETTINGS: dict[str, dict[str, Any]] = {
    "breadcrumbs": {"weight": [0.7, 0.4], "density": 0.5, "gamma": 0.1, "rescale": True},
    "breadcrumbs_ties": {"weight": [0.7, 0.4], "density": [0.5, 0.8], "gamma": 0.1},
    "consensus_ta": {"weight": [0.7, 0.4], "tall_lambda": 0.8},
    "dare_linear": {"weight": [0.7, 0.4], "density": 0.5},
    "dare_ties": {"weight": [0.7, 0.4], "density": [0.5, 0.9]},
    "della": {"weight": [0.7, 0.4], "density": 0.5},
    "della_linear": {"weight": [0.7, 0.4], "density": [0.5, 0.6]},
    "iso_c": {"weight": [0.7, 0.4]},
    "karcher": {},
    "knots_ties": {"weight": [0.7, 0.4], "density": 0.5},
    "linear": {"weight": [0.7, 0.4]},
    "model_stock": {},
    "multislerp": {"weight": [0.7, 0.4]},
    "nearswap": {"t": 0.05},
    "nuslerp": {"weight": [0.7, 0.4]},
    "passthrough": {"scale": 0.5},
    "sce": {"select_topk": 0.4},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": [0.7, 0.4]},
    "ties": {"weight": [0.7, 0.4], "density": [0.5, 0.2], "rescale": True},
    "tsv_merge": {"weight": [0.7, 0.4]},
}
VARIANTS = [  # other branches of the same methods
    ("model_stock", {"filter_wise": True}),
    ("nuslerp", {"weight": [0.7, 0.4], "nuslerp_flatten": False}),
    ("nuslerp", {"weight": [0.7, 0.4], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("ties", {"weight": [0.7, 0.4], "density": 0.3, "variant": "peft"}),
    ("ties", {"weight": [1, 1], "density": 0.3, "variant": "paper", "normalize": False}),
]
ALL = [*SETTINGS.items(), *VARIANTS]
TASK = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties",
        "della", "della_linear")  # fmt: skip
SHAPES = ((12, 10), (31,), (3, 4, 5), (1, 6), (7, 1), ())


def relatives(shape: tuple[int, ...], count: int = 2, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """A random base and inputs that differ from it by a tenth of its size."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(shape, generator=generator) for _ in range(count + 1)]
    return draws[0], [draws[0] + 0.1 * draw for draw in draws[1:]]


def lattice(shape: tuple[int, ...], count: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Deltas with many equal and zero entries, exact in float32, as bfloat16 weights have."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randint(-3, 4, shape, generator=generator) / 64 for _ in range(count)]
    base = torch.randint(-64, 64, shape, generator=generator) / 16
    return base, [base + draw for draw in draws]


def merged(
    name: str, inputs: list[Tensor], base: Tensor, params: dict[str, Any], **how: Any
) -> Any:
    """The merge of as many of the inputs as the method takes."""
    most = get(name).inputs[1]
    return merge_tensors(name, inputs[:most] if most else inputs, base, params, **how)


def paper_ties(deltas: list[Tensor], density: float) -> Tensor:
    """Algorithm 1 of arXiv 2306.01708, element by element."""
    trimmed = []
    for delta in deltas:
        threshold = delta.abs().flatten().sort(descending=True).values
        threshold = threshold[int(density * delta.numel()) - 1]
        trimmed.append(torch.where(delta.abs() >= threshold, delta, 0))
    stacked = torch.stack(trimmed)
    elected = stacked.sum(0).sign()
    agree = (stacked.sign() == elected) & (stacked != 0)
    return (stacked * agree).sum(0) / agree.sum(0).clamp_min(1)
