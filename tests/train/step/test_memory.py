"""Memory savers: results are the same, and attention is computed as often as it should be."""

from __future__ import annotations

import pytest
import torch
from train_steps import cut, tiny_model

from regraft.parallel import attach
from regraft.parallel.kernels.kernel import CpuFlash
from regraft.train.step import memory
from regraft.train.step.loss import nll_sum
from regraft.train.step.memory import save_memory


def step(model, documents=None):
    ids = torch.randint(0, 50, (2, 48), generator=torch.Generator().manual_seed(3))
    part = cut(ids, documents)
    hidden = model.model(**part, use_cache=False).last_hidden_state
    loss = nll_sum(hidden, model.lm_head, ids.roll(-1, 1), 32)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "how",
    [
        {"recompute": True, "offload": False, "tile": 0},
        {"recompute": True, "offload": True, "tile": 0},
        {"recompute": True, "offload": False, "tile": 0, "keep_attention": True},
        {"recompute": True, "offload": True, "tile": 16, "keep_attention": True},
        {"recompute": True, "offload": True, "tile": 16},
        {"recompute": False, "offload": False, "tile": 20},
    ],
)
def test_memory_savers_do_not_change_the_result(how, monkeypatch):
    how = dict(how)
    calls, attention = [], CpuFlash.square_or_full
    monkeypatch.setattr(CpuFlash, "square_or_full", lambda *a: calls.append(a) or attention(*a))
    plain, saving = tiny_model(), tiny_model()
    for model in (plain, saving):
        attach(model)
    keep = how.pop("keep_attention", False)
    store = save_memory(saving.model.layers, keep_attention=lambda: keep, **how)
    documents = [(0, 20), (0,)]
    loss, grads = step(plain, documents)
    calls.clear()
    ours, our_grads = step(saving, documents)
    attentions = 3 * 3  # layers x documents, one row at a time
    assert len(calls) == attentions * (2 if how["recompute"] and not keep else 1)
    if how["tile"]:  # a matrix product over fewer rows may sum in another order
        torch.testing.assert_close(ours, loss, rtol=1e-14, atol=0)
        torch.testing.assert_close(our_grads, grads, rtol=1e-12, atol=1e-13)
    else:
        assert ours == loss
        assert all(torch.equal(a, b) for a, b in zip(our_grads, grads, strict=True))
    if how["offload"]:
        assert store is not None
        inputs, lse = 2 * 48 * 32 * 8, 2 * 48 * 4 * 8  # of a layer; attention's output is as large
        assert store.moved == (3 - 2) * (2 * inputs + lse if keep else inputs)  # of the first layer
        assert len(store) == 0


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 8, 4), (1, 1, 1)])
def test_a_tensor_in_pieces_on_the_host_comes_back_unchanged(shape, monkeypatch):
    monkeypatch.setattr(memory, "_PIECE", 32)
    sent = torch.randn(shape).bfloat16()
    pieces = memory.to_pieces(sent, torch.empty_like)
    assert all(piece.numel() * 2 <= 32 for piece in pieces)
    assert sum(piece.numel() for piece in pieces) == sent.numel()
    back = torch.empty_like(sent)
    memory.copy_pieces(pieces, back)
    assert back.equal(sent)
