"""NearSwap: take the other model's value where it is near the base's.

Source: the model card of alchemonaut/QuartetAnemoi-70B-t0.0001 on the Hugging Face Hub.
"""

from __future__ import annotations

from torch import Tensor

from regraft.merge.methods.registry import method

_LEAST = 1e-6  # distances below it count as this, as in mergekit


@method("nearswap", paper="hf.co/alchemonaut/QuartetAnemoi-70B-t0.0001", inputs=(1, 1))
def nearswap(tensors: list[Tensor], base: Tensor, *, t: float) -> Tensor:
    """base + w (other - base), element by element, with w = t / |other - base| cut to [0, 1]: a
    move of at most t towards the other model."""
    delta = tensors[0] - base
    weight = (t / delta.abs().clamp_min(_LEAST)).clamp(0, 1)
    return base + weight * delta
