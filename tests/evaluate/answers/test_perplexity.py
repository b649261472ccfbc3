"""Perplexity by position, gain and key tokens against the plain formulas."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from evaluated import world_tokenizer
from torch.nn import functional as F

from regraft.evaluate.answers import perplexity
from regraft.evaluate.answers.model import LanguageModel, Source
from regraft.evaluate.prompts.haystack import World
from regraft.evaluate.prompts.length import Prompter

CPU = torch.device("cpu")


def test_perplexity_by_position_and_gain_are_those_of_the_plain_formula(
    model: LanguageModel,
) -> None:
    prompter = Prompter(world_tokenizer())
    rows = perplexity.texts(prompter, World(), 160, 2, seed=0)
    assert [len(row) for row in rows] == [160, 160]
    result = perplexity.measure(model, rows, budget=400)
    ids = torch.tensor(rows)
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    nll = nll.view(2, -1)
    assert list(result.nll) == ["0-64", "64-128", "128-160"]
    assert result.nll["64-128"] == pytest.approx(float(nll[:, 63:127].mean()), rel=1e-4)
    assert result.perplexity == pytest.approx(math.exp(float(nll.mean())), rel=1e-3)
    near = []
    for row in rows:  # windows of 32 tokens that advance by 8, behind <s>
        for at in range(80, 160, 8):
            part = torch.tensor([[row[0], *row[at - 32 : at + 8]]])
            with torch.no_grad():
                logits = model.model(input_ids=part).logits[0, :-1]
            near.append(F.cross_entropy(logits, part[0, 1:], reduction="none")[-8:])
    gain = float(torch.cat(near).mean() - nll[:, 79:].mean())
    assert result.gain == {"32": pytest.approx(gain, abs=1e-4)}


def test_key_tokens_of_one_model_are_counted_in_another(
    model: LanguageModel, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # no token gains two nats in a random model
    monkeypatch.setattr(perplexity, "_key_mask", lambda near, full: near > full)
    other = Source("d", str(folders["donor"])).load(CPU)
    rows = perplexity.texts(Prompter(world_tokenizer()), World(), 160, 2, seed=0)
    keys = perplexity.key_tokens(other, rows, budget=400)
    assert keys is not None
    assert sum(map(len, keys)) > 3
    own = perplexity.measure(model, rows, 400)
    result = perplexity.measure(model, rows, 400, keys)
    assert result.key_share == pytest.approx(sum(map(len, keys)) / 160)
    assert result.key_share != own.key_share
    nll = model.score(rows, [[80 + at for at in row] for row in keys])
    mean = float(torch.cat([values for values, _ in nll]).mean())
    assert result.long_perplexity == pytest.approx(math.exp(mean), rel=1e-4)
    assert perplexity.measure(other, rows, 400) == perplexity.measure(other, rows, 400, keys)
    assert perplexity.key_tokens(other, [row[:100] for row in rows], 400) is None
