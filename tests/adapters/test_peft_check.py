"""PEFT's own reading of an adapter: the same deltas, and no mapped file that another may cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from peft_folders import Q, adapter

from regraft.adapters.peft_check import peft_deltas
from regraft.adapters.reader import Adapter
from regraft.errors import CheckpointError


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}])
def test_the_deltas_are_the_readers(config: dict[str, Any], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", config)
    deltas = dict(peft_deltas(models.LLAMA, folder))
    b, a = Adapter.open(folder).factors(f"{Q}.weight")
    stored = Q.replace(".0.", ".1.")  # a target without factors: PEFT starts at zero
    assert deltas.keys() == {Q, stored}
    assert not deltas[stored].any()
    # two orders of the products of 4 terms in float32
    torch.testing.assert_close(deltas[Q], b @ a, rtol=8 * 1.2e-7, atol=1e-6)


def test_a_file_that_becomes_shorter_while_it_is_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = adapter(tmp_path / "a") / "adapter_model.safetensors"
    read = os.preadv

    def cut_first(descriptor: int, *arguments: Any) -> int:
        if os.path.samestat(os.fstat(descriptor), weights.stat()):
            os.truncate(weights, weights.stat().st_size // 2)
        return read(descriptor, *arguments)

    monkeypatch.setattr(os, "preadv", cut_first)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors became shorter while"):
        list(peft_deltas(models.LLAMA, tmp_path / "a"))
