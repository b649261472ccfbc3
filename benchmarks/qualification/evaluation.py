"""Scores and answers of a language model on the device."""

from __future__ import annotations

import torch
from training import make_model

from qualification.report import Report
from qualification.scope import LAYERS, Scope
from regraft.evaluate.answers.model import LanguageModel
from regraft.parallel import Mesh


def check_evaluation(scope: Scope, report: Report) -> None:
    """A short text against transformers' own loss and next token; then a long one."""
    layers, length = scope.pick(LAYERS, LAYERS, 2), scope.pick(131072, 16384, 128)
    new = scope.pick(32, 8, 4)
    with scope.device:
        model = make_model(scope.model(layers), length + new, scope.dtype)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.generation_config.eos_token_id = []
    tested = LanguageModel("8B", model.eval(), Mesh(device=scope.device))
    generator = torch.Generator().manual_seed(4)
    vocabulary = scope.model(1)["vocab_size"]
    text = torch.randint(vocabulary, (length,), generator=generator).tolist()

    short = text[: scope.pick(2048, 1024, 64)]
    ((nll, hits),) = tested.score([short], [list(range(1, len(short)))])
    ids = torch.tensor([short], device=scope.device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].float()
    exact = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").cpu()
    apart = float((nll - exact).abs().max())
    bound = 64 * torch.finfo(scope.dtype).eps  # of logits of a few units
    report.check(
        "scores of a short text", apart < bound and bool(
            ((logits.argmax(-1) == ids[0, 1:]).cpu() == hits).float().mean() > 0.999
        ), tokens=len(short), largest_difference=apart, bound=bound,
    )  # fmt: skip
    (answer,) = tested.generate([short], new)
    following = _next_logits(model, ids).float()
    below = float(following.max() - following[answer[0]])
    # four units in the last place of the largest logits, which lie between 4 and 8
    bound = 0.125 if scope.device.type == "cuda" else 1e-4
    report.check("first token of an answer", below <= bound, tokens=len(answer),
                 below_the_largest_logit=below, bound=bound)  # fmt: skip

    scope.reset_peaks()
    seconds, scores = scope.timed(lambda: tested.score([text], [list(range(1, length))]))
    finite = bool(scores[0][0].isfinite().all())
    report.check("score", finite, tokens=length, seconds=seconds,
                 tokens_per_s=length / seconds, **scope.peaks())  # fmt: skip
    scope.clear()
    scope.reset_peaks()
    seconds, answers = scope.timed(lambda: tested.generate([text], new))
    report.check("answer", len(answers[0]) == new, tokens=length, new_tokens=new, seconds=seconds,
                 **scope.peaks())  # fmt: skip


def _next_logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the token after a text."""
    with torch.no_grad():
        return model(input_ids=ids).logits[0, -1]
