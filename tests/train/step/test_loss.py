"""The chunked losses against those of torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from regraft.data.batch import IGNORED
from regraft.train.step.loss import kl_sum, nll_sum, token_scores


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_the_chunked_loss_and_its_gradients_are_the_plain_ones(chunk, bias):
    torch.manual_seed(1)
    hidden = torch.randn(2, 40, 16, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(16, 90, bias=bias).double()
    labels = torch.randint(0, 90, (2, 40))
    labels[0, ::3] = IGNORED
    plain = F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), reduction="sum")
    learning = [hidden, *head.parameters()]
    expected = torch.autograd.grad(3 * plain, learning)
    ours = nll_sum(hidden, head, labels, chunk)
    assert abs(float((ours - plain).detach())) < 1e-11
    for got, want in zip(torch.autograd.grad(3 * ours, learning), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)
    scores, hits = token_scores(hidden, head, labels, chunk)
    assert float(scores.sum()) == pytest.approx(float(plain.detach()), abs=1e-10)
    assert float(hits.sum()) == float((head(hidden).argmax(-1) == labels).sum())


@pytest.mark.parametrize("chunk", [3, 64])
def test_the_chunked_distance_is_the_plain_kl(chunk):
    torch.manual_seed(2)
    ours = torch.randn(2, 10, 8, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(2, 10, 6, dtype=torch.float64)
    head, other = (torch.nn.Linear(n, 30, bias=False).double() for n in (8, 6))
    labels = torch.zeros(2, 10, dtype=torch.long)
    labels[1, 4:] = IGNORED
    valid = labels != IGNORED
    plain = F.kl_div(
        head(ours)[valid].log_softmax(-1), other(theirs)[valid].log_softmax(-1), log_target=True,
        reduction="sum",
    )  # fmt: skip
    result = kl_sum(ours, head, theirs, other, labels, chunk)
    torch.testing.assert_close(result, plain, rtol=1e-12, atol=0)
    (expected,) = torch.autograd.grad(plain, ours)
    torch.testing.assert_close(torch.autograd.grad(result, ours)[0], expected)


def test_bfloat16_hidden_states_get_a_float32_loss():
    hidden, head = torch.randn(300, 16).bfloat16(), torch.nn.Linear(16, 2000, bias=False).bfloat16()
    labels = torch.randint(0, 2000, (300,))
    ours = nll_sum(hidden, head, labels, 64)
    assert ours.dtype == torch.float32
    expected = F.cross_entropy(head(hidden).double(), labels, reduction="sum")
    assert float(ours) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bfloat16_heads_gradient_is_summed_over_chunks_in_float32(autocast):
    torch.manual_seed(4)
    hidden = torch.randn(4096, 16).bfloat16().requires_grad_()
    head = torch.nn.Linear(16, 60, bias=False)
    labels = torch.randint(0, 60, (4096,))
    exact = [hidden.detach().double().requires_grad_(), head.weight.detach().bfloat16().double()]
    logits = exact[0] @ exact[1].requires_grad_().T
    expected = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), exact)
    head = head if autocast else head.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        nll_sum(hidden, head, labels, 16).backward()
    for got, want, most in (
        (hidden.grad, expected[0], 4e-3),
        (head.weight.grad, expected[1], 3e-3),
    ):
        assert float((got.double() - want).norm() / want.norm()) < most
    assert head.weight.grad.dtype == head.weight.dtype


def test_a_frozen_head_gets_no_gradient():
    hidden = torch.randn(9, 4, requires_grad=True)
    head = torch.nn.Linear(4, 7, bias=False).requires_grad_(False)
    nll_sum(hidden, head, torch.arange(9) % 7, 2).backward()
    assert hidden.grad is not None
    assert head.weight.grad is None
