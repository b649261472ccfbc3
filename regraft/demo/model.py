"""The demo's model and how it is taught: a 290k-parameter Llama and a loop of thirty lines.

It starts as `regraft.train.toy` says. The base trains with Muon, which discovers retrieval within
about 120 steps with any seed: AdamW took 300 or, with one seed of three, did not within 700; Muon
from a random start takes 190, but then the length it learns is tangled with the rest, and grafts
fail with some seeds. The fine-tunes use AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from regraft.data.world import Row, encode
from regraft.train.toy import config

ANSWER_WEIGHT = 2.0
"""How much more the loss counts a word of an answer than any other word."""


def with_context(model: LlamaForCausalLM, length: int, theta: float) -> LlamaForCausalLM:
    """A copy of the model with another RoPE and context length."""
    copy = LlamaForCausalLM(config(length, theta))
    copy.load_state_dict(model.state_dict())
    return copy


def muon(model: LlamaForCausalLM, rate: float, matrix_rate: float) -> list[torch.optim.Optimizer]:
    """For the base: Muon on the layers' matrices, AdamW on embedding, head and norms."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and ".layers." in name else rest).append(parameter)
    on_matrices = torch.optim.Muon(
        matrices, lr=matrix_rate, momentum=0.9, weight_decay=0.0, adjust_lr_fn="original"
    )
    return [on_matrices, *adamw(rest, rate)]


def adamw(parameters: Iterable[Tensor], rate: float) -> list[torch.optim.Optimizer]:
    """For the fine-tunes."""
    return [torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)]


def teach(
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    rows: Callable[[int], list[Row]],
    factors: Iterable[float],
    watch: Callable[[int, float], None] = lambda step, loss: None,
) -> int:
    """One step on `rows(step)` for each of `factors` of the learning rates; returns their number.

    The loss is the mean NLL of all words, answers counted `ANSWER_WEIGHT` times; `watch` gets the
    mean NLL of the answers alone.
    """
    groups = list(chain.from_iterable(optimizer.param_groups for optimizer in optimizers))
    rates = [group["lr"] for group in groups]
    trained = list(chain.from_iterable(group["params"] for group in groups))
    model.train()
    steps = 0
    for factor in factors:
        batch = rows(steps)
        nll, answers = word_nll(model, torch.tensor(encode(batch))), answer_mask(batch)
        weight = 1 + (ANSWER_WEIGHT - 1) * answers
        ((nll * weight).sum() / weight.sum()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        steps += 1
        watch(steps, float((nll.detach() * answers).sum() / answers.sum().clamp(min=1)))
    model.eval()
    return steps


def word_nll(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Negative log likelihood in nats of every word but the first: [rows, length - 1]."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return nll.view(len(ids), -1)


def answer_mask(rows: list[Row]) -> Tensor:
    """1 where `word_nll` scores a word of an answer, else 0."""
    mask = torch.zeros(len(rows), len(rows[0].words) - 1)
    for number, row in enumerate(rows):
        for at in row.answers:
            mask[number, at - 1 : at + 1] = 1
    return mask
