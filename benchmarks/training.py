"""Models with random weights, and their training step in regraft and in plain transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

from regraft.data.batch import Row, collate
from regraft.parallel import Mesh
from regraft.rope import ContextSpec
from regraft.train.recipe.schema import Body
from regraft.train.step import optimizers as optim
from regraft.train.step.learner import Learner, prepare
from regraft.train.step.rotary import fix_rotary

SMALL = {
    "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 2,
}  # fmt: skip
LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
RANK, RATE, THETA = 16, 1e-3, 500000.0


def make_body(method: str, memory: dict[str, Any], bits: Literal[4] | None = None) -> Body:
    """The recipe of a step. bits: of the frozen weights."""
    return Body.model_validate(
        {
            "model": "none",
            "method": method,
            "lora": {"rank": RANK, "norms": False} if method == "lora" else None,
            "stages": [{"length": 64, "steps": 1}],
            "data": {"sources": [{"name": "none", "text": "none"}]},
            "memory": memory,
            "load": {"bits": bits},
        }
    )


def make_model(sizes: dict[str, int], length: int, dtype: torch.dtype = torch.float32) -> Any:
    """A Llama with random weights on torch's default device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes, max_position_embeddings=length, dtype=dtype,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, dtype=dtype)


def random_rows(length: int, vocabulary: int, steps: int) -> Iterator[Row]:
    """Random text, one document a row."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        ids = torch.randint(vocabulary, (length + 1,), generator=generator)
        positions = torch.arange(length)
        yield Row(ids[:-1], positions, ids[1:], torch.zeros(length, dtype=torch.long))


def make_learner(model: Any, body: Body, mesh: Mesh) -> Learner:
    """The model prepared for training on the mesh's device, with its RoPE fixed."""
    learner = prepare(model, body, mesh).to(mesh.device)
    spec = ContextSpec.from_config(model.config.to_dict())
    fix_rotary(model, spec, spec.max_position_embeddings)
    return learner


def learner_step(learner: Learner, body: Body, mesh: Mesh) -> Callable[[Row], float]:
    """One step as in `regraft.train.loop`, without its data and records."""
    parameters = learner.trained()
    optimizers = optim.make(parameters, body.optimizer)
    optim.set_rate(optimizers, RATE)

    def step(row: Row) -> float:
        nll = learner(mesh.cut(collate([row]))) / row.valid
        nll.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(nll.detach())

    return step


def our_step(model: Any, body: Body, mesh: Mesh) -> Callable[[Row], float]:
    """regraft's step of a transformers model."""
    return learner_step(make_learner(model, body, mesh), body, mesh)


def plain_step(model: Any, body: Body) -> Callable[[Row], float]:
    """The step of a plain training loop with transformers and PEFT."""
    from peft import LoraConfig, get_peft_model

    if body.method == "lora":
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
        model = get_peft_model(model, config)
    if body.memory.checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def step(row: Row) -> float:
        ids, labels = row.ids[None], row.labels[None]
        loss = model(input_ids=ids, labels=labels, shift_labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step
