"""The change that a graft makes, in one line: logits before and after on a fixed prompt.

A merge that did nothing, or destroyed the model, is noticed here before any evaluation. Only one of
the two models is in memory at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from regraft import progress
from regraft.checkpoint.hf.pretrained import load_model
from regraft.checkpoint.hf.tokenizer import load_tokenizer
from regraft.checkpoint.read.source import Checkpoint
from regraft.device import full_precision, pick_device
from regraft.errors import CheckpointError
from regraft.records import SCHEMA_VERSION

PROMPT = (
    "The river runs past the old mill, and in the evening the people of the village sit by the "
    "water and talk about the harvest, the weather and the price of grain."
)
_TOKENS = 32  # of the prompt for a model whose tokenizer does not have these words


@dataclass(frozen=True, kw_only=True)
class LogitChange:
    """The logits of two models on one prompt. largest: the largest difference; kl: mean of
    KL(before || after) in nats; moved: positions whose most likely token changes."""

    tokens: int
    largest: float
    kl: float
    moved: int
    schema_version: int = SCHEMA_VERSION

    def describe(self) -> str:
        """One sentence."""
        if self.largest == 0:
            return (
                f"On a fixed prompt of {self.tokens} tokens every logit is the same: the graft "
                "changed nothing."
            )
        return (
            f"On a fixed prompt of {self.tokens} tokens the largest change of a logit is "
            f"{self.largest:.3g}, KL is {self.kl:.3g} nats, and the most likely token changes at "
            f"{self.moved} positions."
        )


@full_precision()
def measure_change(before: str, after: str, device: str) -> LogitChange:
    """Compare the logits of two models with one vocabulary. Raises CheckpointError where their
    vocabularies have no token in common or a model computes NaN."""
    ids = _prompt(before)
    with progress.stage("Comparing logits"):
        first, second = _logits(before, ids, device), _logits(after, ids, device)
    size = min(first.shape[-1], second.shape[-1])
    first, second = first[:, :size], second[:, :size]
    log_p, log_q = F.log_softmax(first, -1), F.log_softmax(second, -1)
    return LogitChange(
        tokens=len(ids),
        largest=float((first - second).abs().max()),
        kl=max(0.0, float((log_p.exp() * (log_p - log_q)).sum(-1).mean())),
        moved=int((first.argmax(-1) != second.argmax(-1)).sum()),
    )


def _prompt(model: str) -> list[int]:
    """The tokens of the prompt; where the tokenizer does not have its words, or there is none,
    tokens distributed over the vocabulary."""
    with Checkpoint.open(model) as checkpoint:
        vocabulary = int(checkpoint.config["vocab_size"])
        try:
            ids: list[int] = load_tokenizer(checkpoint)(PROMPT)["input_ids"]
        except CheckpointError:
            ids = []
    if len(set(ids)) < len(PROMPT.split()) // 2 or max(ids) >= vocabulary:
        return [(1 + 7919 * n) % vocabulary for n in range(_TOKENS)]
    return ids


@torch.no_grad()
def _logits(model: str, ids: list[int], device: str) -> Tensor:
    """Float32 logits [n, V] after every token, on the CPU."""
    with Checkpoint.open(model) as checkpoint:
        loaded = load_model(checkpoint)
    if loaded.dtype == torch.float16:
        loaded = loaded.float()
    chosen = pick_device(device)
    logits = loaded.to(chosen)(input_ids=torch.tensor([ids], device=chosen), use_cache=False).logits
    result: Tensor = logits[0].float().cpu()
    if not result.isfinite().all():
        raise CheckpointError(f"{model} computes NaN or infinity: its weights are broken.")
    return result
