"""Random numbers by element."""

from __future__ import annotations

import torch

from regraft.merge.methods.blockwise.noise import uniform


def test_uniform_numbers_are_uniform_and_a_function_of_the_element() -> None:
    cpu = torch.device("cpu")
    numbers = uniform(3, 0, 0, (400, 1000), cpu)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, 64, 0, 1)
    chi = float(((counts - 6250) ** 2 / 6250).sum())
    assert 30 < chi < 110  # 63 degrees of freedom
    for lag in (
        (numbers[1:].flatten(), numbers[:-1].flatten()),
        (
            numbers[:, 1:].flatten(),
            numbers[:, :-1].flatten(),
        ),
    ):
        assert abs(float(torch.corrcoef(torch.stack(lag))[0, 1])) < 0.007
    assert torch.equal(uniform(3, 0, 57, (5, 1000), cpu), numbers[57:62])
    many = uniform(0, 0, 0, (20_000, 1024), cpu).double().sum(1)  # exact: multiples of 2^-24
    assert many.unique().numel() > 20_000 - 8  # no row is another one shuffled
    for other in (uniform(4, 0, 0, (400, 1000), cpu), uniform(3, 1, 0, (400, 1000), cpu)):
        pair = torch.stack([numbers.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.007
