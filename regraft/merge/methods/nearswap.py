"""NearSwap: take the other model's value where it is close to the base's.

Source: the model card of alchemonaut/QuartetAnemoi-70B-t0.0001 on the Hugging Face Hub.
"""

from __future__ import annotations

from torch import Tensor

from regraft.merge.methods.registry import method

_LEAST = 1e-6  # smaller distances are replaced by it, as in mergekit


@method("nearswap", paper="hf.co/alchemonaut/QuartetAnemoi-70B-t0.0001", inputs=(1, 1))
def nearswap(tensors: list[Tensor], base: Tensor, *, t: float) -> Tensor:
    """base + w (other - base), element by element, with w = t / |other - base| clamped to [0, 1]:
    each element moves by at most t towards the other model."""
    delta = tensors[0] - base
    weight = (t / delta.abs().clamp_min(_LEAST)).clamp(0, 1)
    return base + weight * delta
