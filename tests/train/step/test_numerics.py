"""The loss, the memory savers and the rotation against what they stand for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from regraft.data.batch import IGNORED
from regraft.errors import RegraftError
from regraft.parallel import Mesh, attach
from regraft.parallel.kernels.kernel import CpuFlash
from regraft.rope import ContextSpec
from regraft.train.contexts import stage_context
from regraft.train.recipe.stages import Rope, Stage
from regraft.train.step import memory
from regraft.train.step.loss import kl_sum, nll_sum, token_scores
from regraft.train.step.memory import save_memory
from regraft.train.step.rotary import Rotary, check_rotary, fix_rotary, wavelengths


def tiny(dtype: torch.dtype = torch.float64):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    ).to(dtype)  # fmt: skip


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
    wanted = torch.autograd.grad(3 * plain, learning)
    ours = nll_sum(hidden, head, labels, chunk)
    assert abs(float((ours - plain).detach())) < 1e-11
    for got, want in zip(torch.autograd.grad(3 * ours, learning), wanted, strict=True):
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
    kept = labels != IGNORED
    plain = F.kl_div(
        head(ours)[kept].log_softmax(-1), other(theirs)[kept].log_softmax(-1), log_target=True,
        reduction="sum",
    )  # fmt: skip
    found = kl_sum(ours, head, theirs, other, labels, chunk)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)
    (wanted,) = torch.autograd.grad(plain, ours)
    torch.testing.assert_close(torch.autograd.grad(found, ours)[0], wanted)


def test_bfloat16_hidden_states_get_a_float32_loss():
    hidden, head = torch.randn(300, 16).bfloat16(), torch.nn.Linear(16, 2000, bias=False).bfloat16()
    labels = torch.randint(0, 2000, (300,))
    ours = nll_sum(hidden, head, labels, 64)
    assert ours.dtype == torch.float32
    wanted = F.cross_entropy(head(hidden).double(), labels, reduction="sum")
    assert float(ours) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bfloat16_heads_gradient_is_summed_over_chunks_in_float32(autocast):
    torch.manual_seed(4)
    hidden = torch.randn(4096, 16).bfloat16().requires_grad_()
    head = torch.nn.Linear(16, 60, bias=False)
    labels = torch.randint(0, 60, (4096,))
    exact = [hidden.detach().double().requires_grad_(), head.weight.detach().bfloat16().double()]
    logits = exact[0] @ exact[1].requires_grad_().T
    wanted = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), exact)
    head = head if autocast else head.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        nll_sum(hidden, head, labels, 16).backward()
    for got, want, most in ((hidden.grad, wanted[0], 4e-3), (head.weight.grad, wanted[1], 3e-3)):
        assert float((got.double() - want).norm() / want.norm()) < most
    assert head.weight.grad.dtype == head.weight.dtype


def test_a_frozen_head_gets_no_gradient():
    hidden = torch.randn(9, 4, requires_grad=True)
    head = torch.nn.Linear(4, 7, bias=False).requires_grad_(False)
    nll_sum(hidden, head, torch.arange(9) % 7, 2).backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


def cut(ids, documents=None, positions=None):
    batch = {"input_ids": ids}
    if documents is not None:
        batch["documents"] = torch.stack(
            [(torch.arange(ids.shape[1])[:, None] >= torch.tensor(s)).sum(1) for s in documents]
        )
    if positions is not None:
        batch["position_ids"] = positions
    return Mesh.create().cut(batch)


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
    plain, saving = tiny(), tiny()
    for model in (plain, saving):
        attach(model)
    kept = how.pop("keep_attention", False)
    store = save_memory(saving.model.layers, keep_attention=lambda: kept, **how)
    documents = [(0, 20), (0,)]
    loss, grads = step(plain, documents)
    calls.clear()
    ours, our_grads = step(saving, documents)
    attentions = 3 * 3  # layers x documents, one row at a time
    assert len(calls) == attentions * (2 if how["recompute"] and not kept else 1)
    if how["tile"]:  # a matrix product over fewer rows may sum in another order
        torch.testing.assert_close(ours, loss, rtol=1e-14, atol=0)
        torch.testing.assert_close(our_grads, grads, rtol=1e-12, atol=1e-13)
    else:
        assert ours == loss
        assert all(torch.equal(a, b) for a, b in zip(our_grads, grads, strict=True))
    if how["offload"]:
        assert store is not None
        inputs, lse = 2 * 48 * 32 * 8, 2 * 48 * 4 * 8  # of a layer; attention's output is as large
        assert store.moved == 3 * (2 * inputs + lse if kept else inputs)
        assert len(store) == 0


def test_documents_do_not_see_each_other():
    model = tiny()
    attach(model)
    ids = torch.randint(0, 50, (1, 30))
    positions = torch.cat([torch.arange(10), torch.arange(20)])[None]
    with torch.no_grad():
        both = model(**cut(ids, [(0, 10)], positions), use_cache=False).logits
        alone = model(**cut(ids[:, 10:]), use_cache=False).logits
    torch.testing.assert_close(both[:, 10:], alone, rtol=1e-12, atol=1e-12)


def forward_of(model):
    return lambda ids, positions: model.model(**cut(ids, None, positions), use_cache=False)


@pytest.mark.parametrize("family", ["default", "yarn", "llama3", "linear"])
def test_the_model_rotates_by_the_stages_table(family):
    model = tiny(torch.float32)
    attach(model)
    base = ContextSpec.from_config(model.config.to_dict())
    stage = Stage(length=4_194_304, theta=4e10, steps=1)
    spec = stage_context(base, base, Rope(family=family), stage, 8)
    rotary = fix_rotary(model, spec, stage.length)
    check_rotary(forward_of(model), model.model.layers[0], rotary, torch.device("cpu"))
    assert ContextSpec.from_config(model.config.to_dict()) == spec


def test_a_theta_too_small_for_its_length_is_said():
    spec = ContextSpec({"rope_type": "default", "rope_theta": 5e5}, 8192)
    told = " ".join(wavelengths(Rotary(spec, 128, 8192)))
    assert "longest wavelength 2,559,1" in told
    assert "Men" not in told
    assert "below Men's bound 4,698,8" in " ".join(wavelengths(Rotary(spec, 128, 2**20 // 12)))


def test_a_model_that_keeps_its_old_frequencies_is_found_out():
    model = tiny(torch.float32)
    attach(model)
    old = model.model.rotary_emb
    base = ContextSpec.from_config(model.config.to_dict())
    spec = stage_context(base, base, Rope(), Stage(length=2048, theta=1e6, steps=1), 8)
    rotary = fix_rotary(model, spec, 2048)
    model.model.rotary_emb = old
    with pytest.raises(RegraftError, match="does not rotate by theta 1000000"):
        check_rotary(forward_of(model), model.model.layers[0], rotary, torch.device("cpu"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_steps_are_those_of_a_plain_loop_with_transformers_and_peft(method):
    from peft import LoraConfig, get_peft_model

    from regraft.data.batch import Row, collate
    from regraft.train.recipe.schema import Body
    from regraft.train.step import optimizers as optim
    from regraft.train.step.learner import prepare

    body = Body.model_validate(
        {
            "model": "none", "method": method, "dtype": "float64",
            "lora": {"rank": 4, "norms": False}, "stages": [{"length": 64, "steps": 1}],
            "data": {"sources": [{"name": "none", "text": "none"}]}, "memory": {"loss_chunk": 7},
        }
    )  # fmt: skip
    mesh, plain, model = Mesh(), tiny(), tiny()
    torch.manual_seed(1)
    learner = prepare(model, body, mesh)
    spec = ContextSpec.from_config(model.config.to_dict())
    fix_rotary(model, spec, 64)
    plain.model.rotary_emb = model.model.rotary_emb  # theirs turns in float32
    torch.manual_seed(1)
    if method == "lora":
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
        plain = get_peft_model(plain, config)
    trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    theirs = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    (ours,) = optim.make(learner.trained(), body.optimizer)
    optim.set_rate([ours], 1e-2)
    assert len(trained) == len(learner.trained())
    for seed in range(3):
        ids = torch.randint(50, (65,), generator=torch.Generator().manual_seed(seed))
        row = Row(ids[:-1], torch.arange(64), ids[1:], torch.zeros(64, dtype=torch.long))
        loss = learner(mesh.cut(collate([row]))) / row.valid
        logits = plain(input_ids=row.ids[None]).logits[0]
        wanted = F.cross_entropy(logits, row.labels)
        assert float(loss.detach()) == pytest.approx(float(wanted.detach()), abs=1e-10)
        for value, optimizer in ((loss, ours), (wanted, theirs)):
            value.backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_no_layer_meets_wide_hidden_states_in_narrow_arithmetic(method):
    from peft.tuners.lora import LoraLayer

    from regraft.train.recipe.schema import Body
    from regraft.train.step.learner import prepare

    stage, source = {"length": 8, "steps": 1}, {"name": "a", "text": "a"}
    body = Body.model_validate(
        {"model": "m", "method": method, "dtype": "bfloat16", "stages": [stage],
         "data": {"sources": [source]}}
    )  # fmt: skip
    mesh = Mesh()
    learner = prepare(tiny(torch.bfloat16 if method == "lora" else torch.float32), body, mesh)
    met = {}
    for name, module in learner.named_modules():
        if isinstance(module, LoraLayer if method == "lora" else torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: met.update({name: args[0].dtype})
            )
    learner(mesh.cut({"input_ids": torch.ones(1, 8).long(), "labels": torch.ones(1, 8).long()}))
    assert len(met) == 3 * 7
    assert set(met.values()) == {torch.bfloat16}


def test_the_reference_kernel_is_as_wide_under_autocast():
    q, k, v = (torch.randn(1, 2, 16, 8).bfloat16() for _ in range(3))
    part = Mesh(kernel="reference").cut({"input_ids": torch.zeros(1, 16).long()})
    wanted = part["context_parallel"].attend(q, k, v, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        found = part["context_parallel"].attend(q, k, v, 0.3)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 8, 4), (1, 1, 1)])
def test_what_waits_on_the_host_in_pieces_is_what_was_sent(shape, monkeypatch):
    monkeypatch.setattr(memory, "_PIECE", 32)
    sent = torch.randn(shape).bfloat16()
    pieces = memory.to_pieces(sent, torch.empty_like)
    assert all(piece.numel() * 2 <= 32 for piece in pieces)
    assert sum(piece.numel() for piece in pieces) == sent.numel()
    back = torch.empty_like(sent)
    memory.copy_pieces(pieces, back)
    assert back.equal(sent)
