"""NCCL with one process: collectives, FSDP2, the exchanges of attention, a distributed checkpoint.

More processes need more cards; a ring needs two at least, since NCCL sends nothing to itself.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from training import RATE, make_body, make_learner, make_model, random_rows

from qualification.report import Report
from qualification.scope import Scope, relative
from qualification.trainee import draw_lora, gradients, take_gradients, whole
from regraft.data.batch import collate
from regraft.parallel import Mesh
from regraft.parallel.exchange.function import Attention
from regraft.parallel.exchange.gather import Gather
from regraft.parallel.exchange.ulysses import over_heads
from regraft.parallel.kernels.choose import choose
from regraft.parallel.layout import gather_spans
from regraft.train.sharded_state import load_sharded, save_sharded
from regraft.train.step import optimizers as optim
from regraft.train.step.fsdp import shard

_LIMIT = timedelta(seconds=60)


def check_distributed(scope: Scope, report: Report) -> None:
    """One process group of one process, over NCCL and gloo as in training."""
    cuda = scope.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(scope.device)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")  # a machine without a network has no other
    before = scope.outside_allocator()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", init_method=f"file://{scope.folder}/store",
        rank=0, world_size=1, timeout=_LIMIT,
    )  # fmt: skip
    try:
        group = dist.new_group([0], timeout=_LIMIT)
        total = torch.ones(1024, device=scope.device)
        dist.all_reduce(total, group=group)
        scope.synchronize()
        report.check("all-reduce", bool((total == 1).all()))
        report.figure("NCCL, first collective", MiB=scope.outside_allocator() - before)
        everyone: list[Any] = [None]
        dist.all_gather_object(everyone, {"rank": 0})
        box = ["sent"]
        dist.broadcast_object_list(box)
        count = torch.tensor([3.0], dtype=torch.float64)  # on the host: gloo
        dist.all_reduce(count)
        report.check(
            "objects and host tensors", everyone == [{"rank": 0}] and box == ["sent"] and
            float(count) == 3.0,
        )  # fmt: skip
        _check_exchanges(scope, report, group)
        _check_fsdp(scope, report, group)
        report.figure("NCCL, at the end", MiB=scope.outside_allocator() - before)
    finally:
        dist.destroy_process_group()


def _check_exchanges(scope: Scope, report: Report, group: dist.ProcessGroup) -> None:
    """Gather and Ulysses through the group against the kernel alone."""
    length, head = 256, 128
    kernel = choose(scope.device.type, scope.dtype, head)
    generator = torch.Generator().manual_seed(0)
    q, k, v, dout = (
        torch.randn(1, n, length, head, generator=generator).to(scope.device, scope.dtype)
        for n in (8, 2, 2, 8)
    )
    rows = [gather_spans(0, 1, length, (0, 100))]

    def alone(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return Attention.apply(a, b, c, Gather(rows, kernel, head**-0.5, None))

    ways = {
        "gather": lambda: Attention.apply(q, k, v, Gather(rows, kernel, head**-0.5, group)),
        "ulysses": lambda: over_heads(alone, q, k, v, group),
    }

    def run(attention: Any) -> list[Tensor]:
        for tensor in (q, k, v):
            tensor.requires_grad_().grad = None
        out = attention()
        out.backward(dout)
        return [out.detach(), *(tensor.grad.clone() for tensor in (q, k, v))]

    expected = run(lambda: alone(q, k, v))
    for name, attention in ways.items():
        errors = [relative(a, b) for a, b in zip(run(attention), expected, strict=True)]
        report.check(name, max(errors) < 4 * torch.finfo(scope.dtype).eps, error=max(errors))


def _check_fsdp(scope: Scope, report: Report, group: dist.ProcessGroup) -> None:
    """A step under FSDP2 against one without; its state through DCP."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    from torch.distributed.device_mesh import DeviceMesh

    length = scope.pick(4096, 2048, 32)
    sizes, body = scope.model(2), make_body("lora", {})
    row = next(random_rows(length, sizes["vocab_size"], 1))
    device_mesh = DeviceMesh.from_group(group, scope.device.type, mesh_dim_names=("shard",))
    plain_mesh = Mesh.create(device=str(scope.device))
    mesh = Mesh(device=scope.device, fsdp_mesh=device_mesh)
    results = {}
    for name, one in (("alone", plain_mesh), ("FSDP2", mesh)):
        torch.manual_seed(1)
        with scope.device:
            model = make_model(sizes, length, scope.dtype)
        learner = make_learner(model, body, one)
        draw_lora(learner.trained())
        shard(learner, body, one)
        results[name] = gradients(learner, one, row)
    (loss, exact), (sharded_loss, sharded) = results["alone"], results["FSDP2"]
    errors = [relative(sharded[key], exact[key]) for key in exact]
    # FlashAttention sums dq in another order at each call
    bound = 8 * torch.finfo(scope.dtype).eps
    report.check(
        "a step under FSDP2", max(errors) < bound and abs(sharded_loss / loss - 1) < bound,
        loss=sharded_loss, loss_alone=loss, worst_gradient=max(errors), bound=bound,
    )  # fmt: skip
    optimizers = optim.make(learner.trained(), body.optimizer)
    optim.set_rate(optimizers, RATE)
    (learner(mesh.cut(collate([row]))) / row.valid).backward()
    norm = torch.nn.utils.clip_grad_norm_(list(learner.trained().values()), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    take_gradients(learner.trained())
    norm = whole(norm)
    report.check("clip and AdamW on shards", bool(norm.isfinite()), norm=float(norm))

    def state() -> dict[str, Any]:
        options = StateDictOptions(ignore_frozen_params=True)
        model, moments = get_state_dict(learner, optimizers, options=options)
        return {"model": model, "optimizers": moments}

    saved = {name: value.to_local().clone() for name, value in state()["model"].items()}
    seconds, _ = scope.timed(lambda: save_sharded(state(), scope.folder / "dcp"))
    with torch.no_grad():
        for parameter in learner.trained().values():
            parameter.zero_()
    load_sharded(values := state(), scope.folder / "dcp")
    same = [torch.equal(values["model"][n].to_local(), value) for n, value in saved.items()]
    report.check("distributed checkpoint", all(same), tensors=len(same), save_s=seconds)
