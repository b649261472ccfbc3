"""Jobs on several gloo processes: one process does the imports and forks the ranks of each job.

`Jobs.run(jobs, world)` returns what `job_<name>(rank)` returned in every rank; an exception in any
rank is shown with its traceback, and ends the process.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from warm import WarmProcess

STARTS = {  # rows of documents by their first tokens, for 64 tokens: chunks of 8 on four ranks
    "one": [[0], [0]],
    "documents": [[0, 1, 8, 30, 63], [0, 5, 16, 17, 40]],
    "shared documents": [[0, 10, 33], [0, 10, 33]],
}
TOPOLOGIES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "ring 2": {"context": 2, "algorithm": "ring"},
        "gather 2": {"context": 2, "algorithm": "gather"},
        "ulysses 2": {"ulysses": 2},
    },
    4: {
        "ring 4": {"context": 4, "algorithm": "ring"},
        "gather 4": {"context": 4, "algorithm": "gather"},
        "ulysses 4": {"ulysses": 4},
        "ring 2 x ulysses 2": {"context": 2, "ulysses": 2, "algorithm": "ring"},
        "gather 2 x ulysses 2": {"context": 2, "ulysses": 2, "algorithm": "gather"},
        "shard 2 x ring 2": {"shard": 2, "context": 2, "algorithm": "ring"},
        "replicate 2 x gather 2": {"replicate": 2, "context": 2, "algorithm": "gather"},
    },
}
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
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def attention_cases(world: int) -> Iterator[tuple[str, str, str]]:
    """(topology, documents, type) of `job_attention`."""
    for topology in TOPOLOGIES[world]:
        yield from ((topology, which, "float64") for which in STARTS)
        yield from ((topology, "documents", dtype) for dtype in ("float32", "bfloat16"))


def model_cases(world: int) -> Iterator[tuple[str, str, str]]:
    """(topology, model, type) of `job_model`: all models on two ranks, on four the extremes."""
    for topology in TOPOLOGIES[world]:
        if topology == "ulysses 4":  # the model has two KV heads
            continue
        yield from (
            (topology, m, "float64") for m in MODELS if m != "FSDP2" and (world == 2 or m == "all")
        )
        yield topology, "plain", "float32"
    if world == 4:
        yield "shard 2 x ring 2", "FSDP2", "float64"
        yield "replicate 2 x gather 2", "FSDP2", "float64"


class Jobs(WarmProcess):
    """The warmed-up process. A context manager."""

    script = __file__

    def run(self, jobs: str, world: int) -> dict[str, list[Any]]:
        """What each of `jobs` (names with commas between) returned in each of `world` ranks."""
        answer = self.ask(f"{jobs} {world}")
        assert answer, f"a rank of {jobs} failed, see above"
        return dict(json.loads(answer))


def documents(starts: list[list[int]], length: int) -> Tensor:
    """[B, S] document numbers."""
    rows = [[sum(s <= i for s in row) - 1 for i in range(length)] for row in starts]
    return torch.tensor(rows)


def visible(numbers: Tensor) -> Tensor:
    """[B, S] documents -> [B, 1, S, S], True where a query sees a key."""
    same = numbers[:, :, None] == numbers[:, None, :]
    return (same & torch.ones(same.shape[1:], dtype=torch.bool).tril())[:, None]


def full_attention(q: Tensor, k: Tensor, v: Tensor, numbers: Tensor, scale: float) -> Tensor:
    """The definition."""
    ratio = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(ratio, 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~visible(numbers), -torch.inf)
    return scores.softmax(-1) @ v


def local(mesh: Any, whole: Tensor, dim: int) -> Tensor:
    """This rank's tokens of a tensor whose axis `dim` is the sequence."""
    from regraft.parallel.layout import pieces

    length = whole.shape[dim]
    ranges = pieces(mesh.context_rank, mesh.context, mesh.ulysses_rank, mesh.ulysses, length)
    return torch.cat([whole.narrow(dim, a, b - a) for a, b in ranges], dim)


def job_attention(rank: int) -> dict[str, dict[str, float]]:
    """Largest error of out, dq, dk, dv against the definition, by topology, documents and type."""
    from regraft.parallel import Mesh

    world = int(os.environ["WORLD_SIZE"])
    meshes = {name: Mesh.create(**sizes) for name, sizes in TOPOLOGIES[world].items()}
    found = {
        ", ".join(case): _attention_errors(meshes[case[0]], STARTS[case[1]], DTYPES[case[2]])
        for case in attention_cases(world)
    }
    ring = meshes[f"ring {world}"]
    found["wrong order"] = _attention_errors(ring, STARTS["one"], torch.float64, wrong=True)
    return found


def _attention_errors(
    mesh: Any, starts: list[list[int]], dtype: torch.dtype, wrong: bool = False
) -> dict[str, float]:
    from regraft.parallel.kept import KeptAttention

    length, scale = 64, 0.3
    generator = torch.Generator().manual_seed(mesh.data_rank)
    shapes = ((2, 8, length, 16), (2, 4, length, 16), (2, 4, length, 16), (2, 8, length, 16))
    q, k, v, dout = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    numbers = documents(starts, length)
    for t in (q, k, v):
        t.requires_grad_()
    out = full_attention(q, k, v, numbers, scale)
    truth = [out, *torch.autograd.grad(out, (q, k, v), dout)]
    part = mesh.cut({"input_ids": torch.zeros(2, length).long(), "documents": numbers})
    mine = [local(mesh, t.detach(), 2).to(dtype) for t in (q, k, v, dout)]
    if wrong:  # contiguous pieces where zigzag is meant
        size = length // mesh.context
        mine = [t.detach()[:, :, mesh.context_rank * size :][:, :, :size] for t in (q, k, v, dout)]
    lq, lk, lv = (t.requires_grad_() for t in mine[:3])
    got = part["context_parallel"].attend(lq, lk, lv, scale)
    results = [got, *torch.autograd.grad(got, (lq, lk, lv), mine[3])]
    assert all(t.dtype == dtype for t in results)
    kept = replace(part["context_parallel"], kept=KeptAttention())  # a layer that is recomputed
    first, again = (kept.attend(lq, lk, lv, scale) for _ in range(2))
    for a, b in zip(
        [again, *torch.autograd.grad(again, (lq, lk, lv), mine[3])], results, strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(first, got)
    return {
        label: float((a.detach().double() - local(mesh, b.detach(), 2)).abs().max())
        for label, a, b in zip(("out", "dq", "dk", "dv"), results, truth, strict=True)
    }


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
    from regraft.parallel import Mesh

    world = int(os.environ["WORLD_SIZE"])
    meshes = {name: Mesh.create(**sizes) for name, sizes in TOPOLOGIES[world].items()}
    return {
        ", ".join(case): _model_errors(meshes[case[0]], DTYPES[case[2]], **MODELS[case[1]])
        for case in model_cases(world)
    }


def _model_errors(
    mesh: Any,
    dtype: torch.dtype,
    *,
    pose: bool = False,
    documents: bool = False,
    length: int = 48,
    fsdp: bool = False,
    **options: bool,
) -> dict[str, float]:
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


def job_mesh(rank: int) -> dict[str, Any]:
    """What the mesh says of itself, and sentences for what is wrong."""
    from regraft.errors import RegraftError
    from regraft.parallel import Mesh

    found: dict[str, Any] = {}

    def sentence(name: str, call: Callable[[], Any]) -> None:
        try:
            found[name] = f"no error but {call()}"
        except RegraftError as error:
            found[name] = str(error)

    sentence("too many", lambda: Mesh.create(context=4, shard=1))
    mesh = Mesh.create(ulysses=2)
    found["default"] = Mesh.create().describe()
    q, kv = torch.zeros(1, 3, 4, 8), torch.zeros(1, 3, 4, 8)
    part = mesh.cut({"input_ids": torch.zeros(1, 8).long()})
    sentence("heads", lambda: part["context_parallel"].attend(q, kv, kv, 1.0))
    mesh = Mesh.create(context=2)
    found["tokens"] = mesh.sum_tokens(torch.tensor([[5, -100, 5], [-100, 5, 5]][: rank + 1]))
    model = tiny_llama(torch.float32)
    found["described"] = mesh.describe(model, 4096)
    text = torch.arange(8).unsqueeze(0)
    found["fsdp"] = list(mesh.fsdp_mesh.shape) if mesh.fsdp_mesh else None

    def other_positions() -> None:
        mesh.cut({"input_ids": text, "position_ids": text + rank})

    sentence("other positions", other_positions)
    sentence("other text", lambda: mesh.cut({"input_ids": text + rank}))
    sentence("other length", lambda: mesh.cut({"input_ids": text[:, : 8 - rank]}))
    return found


def job_patience(rank: int) -> float:
    """Seconds that a rank waited for one that worked longer than the mesh's timeout."""
    from regraft.parallel import Mesh

    mesh = Mesh.create(context=2, timeout=1)
    start = time.monotonic()
    if rank == 0:
        time.sleep(1.5)
    mesh.wait()
    return time.monotonic() - start


def job_constants(rank: int) -> list[float]:
    """What a rank that read no weights got: a constant of the model and its last norm."""
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


def job_lost(rank: int) -> list[Any]:
    """A rank ends between forward and backward: what the other one hears."""
    return _left_alone(timeout=60, linger=0)


def job_sums(rank: int) -> list[float]:
    """Numbers of both ranks, added in float64."""
    from regraft.parallel import Mesh

    return Mesh.create(shard=2).sum_numbers([2.0**40 + rank, 0.5])


def job_hung(rank: int) -> list[Any]:
    """A rank does not answer."""
    return _left_alone(timeout=1, linger=2)


def job_count_lost(rank: int) -> list[Any]:
    """A rank is gone when a step counts its tokens, its first collective."""
    from regraft.parallel import Mesh

    mesh = Mesh.create(shard=2, timeout=60)
    return _heard(mesh, 0, lambda: mesh.sum_numbers([3, 0.5]))


def _left_alone(timeout: float, linger: float) -> list[Any]:
    from regraft.parallel import Mesh

    mesh = Mesh.create(context=2, algorithm="ring", timeout=timeout)
    part = mesh.cut({"input_ids": torch.zeros(1, 8).long()})
    q = torch.zeros(1, 2, 4, 8, requires_grad=True)
    out = part["context_parallel"].attend(q, q, q, 1.0)
    return _heard(mesh, linger, lambda: out.sum().backward())


def _heard(mesh: Any, linger: float, work: Callable[[], object]) -> list[Any]:
    """What the first of two processes hears, and after how long, when the second only lingers."""
    from regraft.errors import RegraftError

    start = time.monotonic()
    if mesh.rank == 1:
        time.sleep(linger)
        return []
    try:
        with mesh.guard():
            work()
    except RegraftError as error:
        return [str(error), time.monotonic() - start]
    return ["nothing", 0.0]


def job_spread(rank: int) -> dict[str, Any]:
    """What an evaluation's processes share of five parts, and the error of one."""
    from regraft.errors import InputError
    from regraft.evaluate.answers.distributed import map_over_processes
    from regraft.parallel import Mesh

    mesh = Mesh.create(shard="auto")

    def refuse(part: int) -> int:
        if part:
            raise InputError(f"part {part}")
        return part

    found: dict[str, Any] = {"squares": map_over_processes(mesh, range(5), lambda part: part**2)}
    found["none"] = map_over_processes(mesh, [], refuse)
    try:
        map_over_processes(mesh, range(4), refuse)
    except InputError as error:
        found["error"] = str(error)
    return found


def job_spread_lost(rank: int) -> list[Any]:
    """A process dies in the middle of its part: what the other one hears."""
    return _half_spread(timeout=60, linger=0)


def job_spread_hung(rank: int) -> list[Any]:
    """A process does not come back."""
    return _half_spread(timeout=1, linger=3)


def _half_spread(timeout: float, linger: float) -> list[Any]:
    from regraft.evaluate.answers.distributed import map_over_processes
    from regraft.parallel import Mesh

    mesh = Mesh.create(shard="auto", timeout=timeout)
    return _heard(mesh, linger, lambda: map_over_processes(mesh, range(4), lambda part: part))


def _serve() -> None:
    import peft
    import transformers.models.llama.modeling_llama

    import regraft.parallel  # noqa: F401

    del peft, transformers
    torch.set_num_threads(1)
    for line in sys.stdin:
        jobs, world = line.split()
        found = {job: _on_ranks(job, int(world)) for job in jobs.split(",")}
        print(json.dumps(found), flush=True)


def _on_ranks(name: str, world: int) -> list[Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )  # fmt: skip
            _rank(globals()[f"job_{name}"], rank, writing)
        os.close(writing)
        children.append((child, reading))
    results = []
    for rank, (child, reading) in enumerate(children):
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status or not text:
            print(f"rank {rank} of {name} ended with {status}", file=sys.stderr)
            sys.exit(1)
        results.append(json.loads(text))
    return results


def _rank(job: Callable[[int], Any], rank: int, writing: int) -> None:
    status = 0
    try:
        text = json.dumps(job(rank))
        with os.fdopen(writing, "w") as pipe:
            pipe.write(text)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve()
