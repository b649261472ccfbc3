"""A tiny Llama over a cut sequence against transformers with explicit masks in one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from parallel_attention import DTYPES, TOPOLOGIES, documents, meshes, visible
from torch import Tensor

MODELS = {
    "plain": {},
    "documents": {"documents": True},
    "PoSE": {"pose": True},
    "checkpointing": {"checkpointing": True},
    "LoRA": {"lora": True},
    "padding": {"length": 43},
    "FSDP2": {"lora": True, "documents": True, "checkpointing": True, "fsdp": True},
    "all": {"documents": True, "pose": True, "checkpointing": True, "lora": True, "length": 45},
}


def model_cases(world: int) -> Iterator[tuple[str, str, str]]:
    """(topology, model, type) of `job_model`: all models on two ranks, on four the extremes."""
    for topology in TOPOLOGIES[world]:
        if topology == "ulysses 4":  # the model has two KV heads
            continue
        yield from (
            (topology, m, "float64") for m in MODELS if m != "FSDP2" and (world == 2 or m == "all")
        )
        if world == 2 or topology == "ring 4":
            yield topology, "plain", "float32"
    if world == 4:
        yield "shard 2 x ring 2", "FSDP2", "float64"
        yield "replicate 2 x gather 2", "FSDP2", "float64"


def tiny_llama(dtype: torch.dtype, *, lora: bool = False, checkpointing: bool = False) -> Any:
    """A Llama of two layers, 4 heads and 2 KV heads, the same in every process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=61, max_position_embeddings=4096,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).to(dtype)
    for p in model.parameters():  # far from uniform attention, so that order matters
        if p.ndim == 2:
            p.data.mul_(8)
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        ).to(dtype)
    if checkpointing:
        model.config.use_cache = False
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if lora:
            model.enable_input_require_grads()
    return model.train()


def batch_of(seed: int, length: int = 48, *, pose: bool = False, documents_: bool = False) -> Any:
    """Two rows of tokens; labels shifted, two in five of them -100 and mostly at the start."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 61, (2, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[torch.rand(labels.shape, generator=generator) < torch.linspace(0.8, 0, length)] = -100
    batch = {"input_ids": ids[:, :-1], "labels": labels}
    if pose:
        jump = torch.arange(length) + 1000 * (torch.arange(length) >= length // 3)
        batch["position_ids"] = jump.unsqueeze(0)
    if documents_:
        batch["documents"] = documents([[0, 7, 20], [0, 31]], length)
    return batch


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )


def whole_loss(model: Any, batches: list[Any]) -> Tensor:
    """One process, explicit masks, transformers' own attention; all valid tokens weigh the same."""
    tokens = sum(int((b["labels"] != -100).sum()) for b in batches)
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        rest = {k: v for k, v in batch.items() if k not in ("labels", "documents")}
        length = batch["labels"].shape[1]
        numbers = batch.get("documents", torch.zeros(2, length).long())
        rest.setdefault("position_ids", torch.arange(length).unsqueeze(0))
        logits = model(**rest, attention_mask=visible(numbers), use_cache=False).logits
        total = total + loss_sum(logits.double(), batch["labels"])
    return total / tokens


def job_model(rank: int) -> dict[str, dict[str, float]]:
    """Errors of a tiny Llama's loss, gradients and joined logits, by topology and case."""
    mesh_of = meshes()
    return {
        ", ".join(case): model_errors(mesh_of[case[0]], DTYPES[case[2]], **MODELS[case[1]])
        for case in model_cases(int(os.environ["WORLD_SIZE"]))
    }


def model_errors(
    mesh: Any,
    dtype: torch.dtype,
    *,
    pose: bool = False,
    documents: bool = False,
    length: int = 48,
    fsdp: bool = False,
    **options: bool,
) -> dict[str, float]:
    """Errors against `whole_loss` on the batches of all data ranks: of the loss, of the gradients
    (the largest relative one) and of the joined logits."""
    from regraft.parallel import attach

    batches = [
        batch_of(seed, length, pose=pose, documents_=documents) for seed in range(mesh.data_size)
    ]
    truth = tiny_llama(torch.float64, **options)
    expected = whole_loss(truth, batches)
    expected.backward()
    model = tiny_llama(dtype, **options)
    attach(model)
    if fsdp:
        _shard(model, mesh)
    part = mesh.cut(batches[mesh.data_rank])
    labels = part.pop("labels")
    logits = model(**part).logits
    loss = loss_sum(logits, labels) / mesh.sum_tokens(labels)
    (loss * mesh.size if fsdp else loss).backward()
    pairs = [
        (p.grad.full_tensor() if fsdp else mesh.sum(p.grad), t.grad)
        for p, t in zip(model.parameters(), truth.parameters(), strict=True)
        if t.grad is not None
    ]
    assert len(pairs) >= 20
    joined = mesh.join(logits, part)
    batch = batches[mesh.data_rank]
    rest = {k: v for k, v in batch.items() if k not in ("labels", "documents")}
    with torch.no_grad():
        rest.setdefault("position_ids", torch.arange(length).unsqueeze(0))
        numbers = batch.get("documents", torch.zeros(2, length).long())
        whole = truth(**rest, attention_mask=visible(numbers), use_cache=False).logits
    return {
        "loss": abs(float(mesh.sum(loss)) - float(expected.detach())),
        "gradients": max(float((g.double() - t).norm() / t.norm()) for g, t in pairs),
        "joined": float((joined.double() - whole).abs().max()),
    }


def _shard(model: Any, mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh.fsdp_mesh)
    fully_shard(model, mesh=mesh.fsdp_mesh)


def job_constants(rank: int) -> list[float]:
    """A constant of the model and its last norm in every rank; only the first has its weights."""
    from regraft.parallel import Mesh
    from regraft.train.recipe.schema import Body
    from regraft.train.step.fsdp import shard
    from regraft.train.step.learner import prepare

    stage = {"length": 64, "steps": 1}
    body = Body(model="m", stages=[stage], data={"sources": [{"name": "a", "text": "a"}]})
    mesh = Mesh.create(shard=2)
    model = tiny_llama(torch.float32)
    torch.nn.init.constant_(model.model.norm.weight, 3.0)
    model.model.register_buffer("constant", torch.tensor([5.0]), persistent=False)
    learner = prepare(model.to("meta") if rank else model, body, mesh)
    shard(learner, body, mesh)
    return [float(model.model.constant), float(model.model.norm.weight.full_tensor().mean())]
