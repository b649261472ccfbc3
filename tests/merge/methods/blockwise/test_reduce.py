"""Sums over blocks."""

from __future__ import annotations

import torch

from regraft.merge.methods.blockwise.reduce import row_sums


def test_sums_do_not_depend_on_blocks_or_threads() -> None:
    torch.manual_seed(0)
    values = torch.randn(30, 70_000, dtype=torch.float64)
    before = torch.get_num_threads()
    sums = []
    for threads, height in ((1, 30), (1, 1), (2, 1), (2, 7)):
        torch.set_num_threads(threads)
        sums.append([each for block in values.split(height) for each in row_sums(block)])
    torch.set_num_threads(before)
    assert all(each == sums[0] for each in sums)
    assert row_sums(torch.tensor([[1e8, 1.0, -1e8]])) == [1.0]  # float32 would say 0
