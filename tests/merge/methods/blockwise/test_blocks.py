"""Tensors as row blocks."""

from __future__ import annotations

import pytest
import torch
from method_inputs import relatives

from regraft.merge.methods import StoredBlocks


@pytest.mark.parametrize("step", [1, 3, 50])
def test_stored_blocks_give_all_rows_or_every_nth(step: int) -> None:
    base, inputs = relatives((23, 2, 5))
    half = [t.bfloat16() for t in inputs]
    blocks = list(StoredBlocks(half, base, 40)(step))
    assert all(len(block[0][0]) <= 4 for block in blocks)
    for i, tensor in enumerate(half):
        assert torch.equal(torch.cat([block[0][i] for block in blocks]), tensor[::step].float())
    assert torch.equal(torch.cat([b for _, b in blocks if b is not None]), base[::step])
