"""Warnings before the first step, of devices whose properties are stand-ins."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from llama_shapes import llama

from regraft.parallel import Mesh
from regraft.train import job, setup
from regraft.train.estimate import machine, plan, shortage
from regraft.train.estimate.machine import parse_machine
from regraft.train.recipe.recipe import Recipe


def recipe_of(tmp_path, length):
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {toy: {hidden: 128}}\nmethod: lora\ndtype: bfloat16\n"
        f"stages: [{{length: 1k, steps: 1}}, {{length: {length}, steps: 1}}]\n"
        "data: {sources: [{name: a, synthetic: notes}]}\n"
    )
    return Recipe.read(path)


@pytest.mark.parametrize(
    ("length", "advice"),
    [
        ("64k", None),
        ("128k", "with memory: fused_norms and fused_swiglu or tiled_mlp or offload."),
        ("192k", "it would fit with memory: offload."),
        ("400k", "it would fit with memory: offload, tiled_mlp, fused_norms and fused_swiglu."),
        ("4M", "no memory saver is enough: take more devices or shorter rows."),
    ],
)
def test_before_the_first_step_too_little_memory_is_named_with_what_helps(
    length, advice, tmp_path, monkeypatch
):
    """A LoRA of Llama-3-8B on an H100 with 128 GiB of host memory."""
    gpu, shape = parse_machine("H100", None), llama(32, False)
    monkeypatch.setattr(shortage, "this_machine", lambda *_: gpu)
    monkeypatch.setattr(shortage, "shape_of", lambda _: shape)
    recipe, mesh = recipe_of(tmp_path, length), Mesh(device=torch.device("cuda"))
    switches = plan.switches_of(recipe.body, gpu)
    estimates = [
        plan.estimate_stage(recipe, stage, shape, switches, gpu, 1) for stage in recipe.body.stages
    ]
    lines = shortage.memory_shortages(recipe, None, mesh, estimates)
    if advice is None:
        assert lines == []
        return
    (line,) = lines
    assert line.startswith("Stage 2 needs about ")
    assert "83.1 GB" in line
    assert advice in line


H100 = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=85_000_000_000)
A100 = SimpleNamespace(name="NVIDIA A100-SXM4-40GB", total_memory=42_400_000_000)


def test_a_run_warns_before_its_first_step(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(setup.progress, "warn", said.append)
    monkeypatch.setattr(setup, "different_gpus", lambda _: "they differ")
    monkeypatch.setattr(setup, "memory_shortages", lambda *_: ["too little"])
    monkeypatch.setattr(setup, "estimate_run", lambda *_: [])
    run = SimpleNamespace(mesh=Mesh(device=torch.device("cuda")), recipe=None, shapes=None)
    setup.warn_of_devices(run)
    assert said == ["they differ", "too little"]
    setup.warn_of_devices(SimpleNamespace(mesh=Mesh()))
    assert len(said) == 2

    def stop(run):
        raise KeyboardInterrupt

    checked = SimpleNamespace(contexts=[])
    monkeypatch.setattr(job, "model_source", lambda *_: "toy")
    monkeypatch.setattr(job.Checkpoint, "open", lambda _: nullcontext())
    monkeypatch.setattr(job, "prepare_run", lambda *_: checked)
    monkeypatch.setattr(job, "warn_of_devices", stop)
    monkeypatch.setattr(job, "_work", lambda *_: pytest.fail("the run began"))
    with pytest.raises(KeyboardInterrupt):
        job.train_model(recipe_of(tmp_path, "2k"), tmp_path / "out", device="cpu")


def test_different_gpus_are_named(monkeypatch):
    def gather(every, own, group):
        every[:] = [own, own, "NVIDIA A100-SXM4-40GB with 42.4 GB"]

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: H100)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    mesh = Mesh(shard=3, device=torch.device("cuda"), groups={"all": None})
    note = shortage.different_gpus(mesh)
    assert "1 x NVIDIA A100-SXM4-40GB with 42.4 GB, 2 x NVIDIA H100 80GB HBM3 with 85 GB" in note
    monkeypatch.setattr(dist, "all_gather_object", lambda every, own, group: every.__setitem__(
        slice(None), [own] * 3))  # fmt: skip
    assert shortage.different_gpus(mesh) is None
    assert shortage.different_gpus(replace(mesh, device=torch.device("cpu"))) is None


def test_the_plan_of_a_machine_with_different_gpus_is_for_the_smallest(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: (H100, A100)[i])
    assert machine.this_machine(1e12).name == "2xA100-42"
    first = torch.device("cuda", 0)  # a run in one process is on one of them
    assert machine.this_machine(1e12, first).name == "1xH100-85"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert machine.this_machine(1e12, first).name == "2xA100-42"
