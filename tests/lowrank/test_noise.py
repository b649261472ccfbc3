"""The noise floor: what rounding adds to a delta, and the edge below which values say nothing."""

from __future__ import annotations

import math

import pytest
import torch

from regraft.lowrank.noise import (
    Floor,
    Noise,
    denoised_squares,
    noise_edge,
    noise_floor,
    rounding_noise,
)


@pytest.mark.parametrize("shape", [(300, 300), (120, 480), (480, 120), (40, 900)])
def test_the_edge_is_where_simulated_noise_ends(shape):
    """The 99.9% quantile: noise seldom reaches it, and comes near it."""
    generator = torch.Generator().manual_seed(5)
    tops = torch.stack(
        [torch.linalg.svdvals(0.1 * torch.randn(*shape, generator=generator))[0] for _ in range(60)]
    )
    edge = noise_edge(0.01, *shape)
    assert tops.max() < edge
    assert tops.mean() > 0.93 * edge


def test_rounding_noise_is_the_variance_that_rounding_adds():
    generator = torch.Generator().manual_seed(6)
    base = torch.randn(512, 256, generator=generator) * 0.02
    extended = base + 0.001 * torch.randn(512, 256, generator=generator)
    for dtype in (torch.bfloat16, torch.float16):
        one, both = base.to(dtype), extended.to(dtype)
        measured = float((both.float() - extended).square().mean())
        noise = rounding_noise(one, both)
        assert noise.low == pytest.approx(measured, rel=0.1)
        assert noise.high == pytest.approx(2 * measured, rel=0.1)
        upcast = rounding_noise(one.float(), both.float())
        assert upcast.high == pytest.approx(noise.high)
        mixed = rounding_noise(base, both)  # float32's own rounding is next to nothing
        assert mixed.high == pytest.approx(noise.low, rel=1e-3)


def test_noise_of_zeros_and_of_one_row_is_defined():
    zeros = torch.zeros(8, 8)
    assert rounding_noise(zeros, zeros) == Noise(0.0, 0.0)
    assert rounding_noise(torch.ones(1, 3), torch.ones(1, 3)).low > 0


def test_the_floor_lies_between_one_rounding_and_two():
    m = n = 256
    noise = Noise(low=1e-6, high=2e-6)
    for true, expected in ((1e-6, 1e-6), (1.5e-6, 1.5e-6), (2e-6, 2e-6), (4e-6, 2e-6)):
        generator = torch.Generator().manual_seed(7)
        delta = math.sqrt(true) * torch.randn(m, n, generator=generator)
        singular = torch.linalg.svdvals(delta).double()
        floor = noise_floor(singular, float(singular.square().sum()), (m, n), noise)
        assert floor.variance == pytest.approx(expected, rel=0.05)
        assert floor.edge == noise_edge(floor.variance, m, n)
        assert (floor.above > 0) == (true > noise.high)


class OnAnotherDevice(torch.Tensor):
    """A tensor that meets others only after `.cpu()`, as one on a GPU does."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        plain = [a for a in args if isinstance(a, torch.Tensor) and not isinstance(a, cls)]
        if any(a.ndim for a in plain):
            raise RuntimeError("Expected all tensors to be on the same device")
        return result


def test_rounding_noise_is_measured_on_any_device(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 32, generator=generator).bfloat16()
    extended = base + 1
    expected = rounding_noise(base, extended)
    moved = [x.as_subclass(OnAnotherDevice) for x in (base, extended)]
    bincount = torch.bincount
    monkeypatch.setattr(torch, "bincount", lambda x: bincount(x).as_subclass(OnAnotherDevice))
    assert rounding_noise(*moved) == expected


@pytest.mark.parametrize("strength", [2.0, 4.0, 10.0])
def test_the_noise_along_a_direction_is_taken_off_its_singular_value(strength):
    """Values at `strength` times the threshold (m n)^(1/4) below which noise hides them."""
    m, n, sigma = 700, 500, 1e-3
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(k, 8, generator=generator))[0] for k in (m, n))
    value = strength * sigma * (m * n) ** 0.25
    noise = sigma * torch.randn(m, n, generator=generator)
    singular = torch.linalg.svdvals((value * left @ right.T + noise).double())
    floor = Floor(sigma**2, noise_edge(sigma**2, m, n), 8)
    squares = denoised_squares(singular, floor, (m, n))
    assert float(singular[:8].square().sum()) > (1 + 1 / strength**2) * 8 * value**2
    # the mean of 8 squares, each off by some 2 sigma / value
    assert float(squares[:8].mean()) == pytest.approx(value**2, rel=4 * sigma / value)
    assert not squares[8:].any()


def test_without_noise_the_singular_values_are_the_changes():
    singular = torch.tensor([3.0, 2.0, 1e-9])
    squares = denoised_squares(singular, Floor(0.0, 1e-7, 2), (5, 4))
    assert squares.tolist() == [9.0, 4.0, 0.0]
