"""The model in training against transformers and PEFT."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.nn import functional as F
from train_steps import tiny_model

from regraft.data.batch import Row, collate
from regraft.parallel import Mesh
from regraft.rope import ContextSpec
from regraft.train.recipe.schema import Body
from regraft.train.step import optimizers as optim
from regraft.train.step.learner import prepare
from regraft.train.step.rotary import fix_rotary


@pytest.mark.parametrize("method", ["full", "lora"])
def test_steps_are_those_of_a_plain_loop_with_transformers_and_peft(method):
    body = Body.model_validate(
        {
            "model": "none", "method": method, "dtype": "float64",
            **({"lora": {"rank": 4, "norms": False}} if method == "lora" else {}),
            "stages": [{"length": 64, "steps": 1}],
            "data": {"sources": [{"name": "none", "text": "none"}]}, "memory": {"loss_chunk": 7},
        }
    )  # fmt: skip
    mesh, plain, model = Mesh(), tiny_model(), tiny_model()
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
        expected = F.cross_entropy(logits, row.labels)
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-10)
        for value, optimizer in ((loss, ours), (expected, theirs)):
            value.backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_no_layer_gets_wide_hidden_states_in_narrow_arithmetic(method):
    stage, source = {"length": 8, "steps": 1}, {"name": "a", "text": "a"}
    body = Body.model_validate(
        {"model": "m", "method": method, "dtype": "bfloat16", "stages": [stage],
         "data": {"sources": [source]}}
    )  # fmt: skip
    mesh = Mesh()
    learner = prepare(tiny_model(torch.bfloat16 if method == "lora" else torch.float32), body, mesh)
    dtypes = {}
    for name, module in learner.named_modules():
        if isinstance(module, LoraLayer if method == "lora" else torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: dtypes.update({name: args[0].dtype})
            )
    learner(mesh.cut({"input_ids": torch.ones(1, 8).long(), "labels": torch.ones(1, 8).long()}))
    assert len(dtypes) == 3 * 7
    assert set(dtypes.values()) == {torch.bfloat16}
