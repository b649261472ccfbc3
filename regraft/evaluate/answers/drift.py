"""The drift of a model from the recipient on short text, where nothing should change.

Mean KL(recipient || model) in nats over all positions, the share of positions at which both have
the same likeliest token, and the cosine of their last hidden states. Tokens that only one of the
vocabularies contains are left out. (The cosine of hidden states after a context extension predicts
how much of MMLU is retained: LongReD, arXiv 2502.07365.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.evaluate.answers.distributed import map_over_processes
from regraft.evaluate.answers.model import LanguageModel
from regraft.evaluate.result import Drift

_CHUNK = 1024  # positions whose logits exist at a time
_LONGEST_TEXT = 2048  # tokens


def text_length(context: int) -> int:
    """Tokens of a text, for a recipient whose context has `context` tokens."""
    return min(context, _LONGEST_TEXT)


class Reference:
    """The recipient's head, and its hidden states of the rows that `map_over_processes` gives to
    this process, in host memory, so that the recipient itself can be freed."""

    def __init__(self, model: LanguageModel, rows: Sequence[Sequence[int]]) -> None:
        self.rows, self.hidden = rows, dict[int, Tensor]()

        def store(number: int) -> None:
            self.hidden[number] = model.rows([rows[number]])[0].cpu()

        map_over_processes(model.mesh, range(len(rows)), store)
        self._weight = model.model.get_output_embeddings().weight.detach().cpu().clone()
        self._scale, self._cap = model._scale, model._cap

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, d] -> float32 logits [n, V], on the device of `hidden`."""
        weight = self._weight.to(hidden.device)
        logits = (hidden.to(weight.dtype) @ weight.T).float() * self._scale
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap


@torch.no_grad()
def measure(model: LanguageModel, reference: Reference) -> Drift:
    """The drift of `model` from the reference. Raises InputError if it computes NaN or infinity."""

    def compare(number: int) -> tuple[float, int, float]:
        kl, top, cosine = 0.0, 0, 0.0
        ours, theirs = model.rows([reference.rows[number]])[0], reference.hidden[number]
        for mine, other in zip(ours.split(_CHUNK), theirs.split(_CHUNK), strict=True):
            other = other.to(mine.device)
            ours_logits, theirs_logits = model.head(mine), reference.logits(other)
            both = min(ours_logits.shape[-1], theirs_logits.shape[-1])
            q, p = (x[:, :both].log_softmax(-1) for x in (ours_logits, theirs_logits))
            kl += float((p.exp() * (p - q)).sum())
            top += int((p.argmax(-1) == q.argmax(-1)).sum())
            if mine.shape == other.shape:
                same = torch.nn.functional.cosine_similarity(mine.float(), other.float(), dim=-1)
                cosine += float(same.sum())
        return kl, top, cosine

    sums = map_over_processes(model.mesh, range(len(reference.rows)), compare)
    kl, top, cosine = (sum(part) for part in zip(*sums, strict=True))
    if not math.isfinite(kl):
        raise InputError(
            f"{model.name} computes NaN or infinity on short text, so it has no drift; its weights "
            "are broken."
        )
    count = sum(map(len, reference.rows))
    return Drift(
        kl=float(f"{max(kl / count, 0.0):.6g}"),
        top1=round(top / count, 6),
        cosine=round(cosine / count, 6),
        positions=count,
    )
