"""Drift from a reference model against the plain formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluated import world_tokenizer
from torch.nn import functional as F

from regraft.evaluate.answers import drift, perplexity
from regraft.evaluate.answers.model import LanguageModel, Source
from regraft.evaluate.prompts.haystack import World
from regraft.evaluate.prompts.length import Prompter

CPU = torch.device("cpu")


def test_drift_from_oneself_is_nothing_and_from_another_is_the_formula(
    model: LanguageModel, folders: dict[str, Path]
) -> None:
    rows = perplexity.texts(Prompter(world_tokenizer()), World(), 50, 2, seed=0)
    reference = drift.Reference(model, rows)
    own = drift.measure(model, reference)
    assert own.kl == pytest.approx(0, abs=1e-6)
    assert own.cosine == pytest.approx(1, abs=1e-5)
    assert own.top1 == 1
    other = Source("d", str(folders["donor"])).load(CPU)
    result = drift.measure(other, reference)
    ids = torch.tensor(rows)
    with torch.no_grad():
        p = model.model(input_ids=ids).logits.double().log_softmax(-1)
        q = other.model(input_ids=ids).logits.double().log_softmax(-1)
    kl = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    assert result.kl == pytest.approx(float(kl), rel=1e-3)
    assert result.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
