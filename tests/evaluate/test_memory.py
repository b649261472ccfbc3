"""Memory of what is measured without questions: a layer's activations, never all logits."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import LLAMA

from regraft.evaluate.answers import drift, perplexity
from regraft.evaluate.answers.model import LanguageModel
from regraft.parallel import Mesh

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
VOCABULARY, SHORT, LONG = 8192, 1024, 4096
LOGITS = 4 * VOCABULARY  # bytes of one token's


@pytest.fixture
def model() -> Iterator[LanguageModel]:
    from transformers import LlamaConfig, LlamaForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(**{**LLAMA, "vocab_size": VOCABULARY, "max_position_embeddings": LONG})
    yield LanguageModel("m", LlamaForCausalLM(config).eval(), Mesh())
    torch.set_num_threads(threads)


def peak(work: Callable[[], Any]) -> int:
    """Bytes by which the resident memory rises at most during the work."""

    def status(name: str) -> int:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what other tests left, or less would be asked for
    RESET.write_text("5")  # the peak starts anew
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


@pytest.mark.skipif(not os.access(RESET, os.W_OK), reason="peaks are read from /proc")
def test_memory_grows_by_activations_and_not_by_vocabulary_times_length(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "WINDOWS", ())
    generator = torch.Generator().manual_seed(1)

    def rows(length: int) -> list[list[int]]:
        return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()]

    def read(length: int) -> None:
        perplexity.measure(model, rows(length), length)
        drift.measure(model, drift.Reference(model, rows(length)))

    read(SHORT)  # what is loaded once
    short, long = (peak(lambda length=length: read(length)) for length in (SHORT, LONG))
    every = (LONG - SHORT) * LOGITS
    assert long - short < every / 3
    # the peak itself is mostly the few chunks of logits that exist at a time, however long the text
    whole = peak(lambda: model.model(input_ids=torch.tensor(rows(LONG))).logits)
    assert whole > LONG * LOGITS  # what it would be
