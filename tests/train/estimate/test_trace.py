"""The real step run by shape alone: its bytes, against a GPU's and against itself."""

from __future__ import annotations

import json

import pytest
import torch.distributed as dist
from llama_shapes import LLAMA_8B_CONFIG
from typer.testing import CliRunner

from regraft import cli
from regraft.errors import InputError
from regraft.train.estimate import plan, trace
from regraft.train.estimate.machine import GIB
from regraft.train.estimate.trace import Trace, trace_stage
from regraft.train.recipe.schema import Body

SMALL = {
    **LLAMA_8B_CONFIG, "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512,
    "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 8,
}  # fmt: skip
LLAMA_70B = {
    **LLAMA_8B_CONFIG, "hidden_size": 8192, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_hidden_layers": 1,
}  # fmt: skip


def recipe(method="lora", parallel=None, optimizer=None, **memory) -> Body:
    return Body.model_validate(
        {
            "model": "m", "method": method, "parallel": parallel or {},
            "optimizer": optimizer or {}, "memory": {"keep_attention": False, **memory},
            "stages": [{"length": 64, "steps": 1}],
            "data": {"sources": [{"name": "a", "text": "a"}]},
        }
        | ({"lora": {"rank": 16}} if method == "lora" else {})
    )  # fmt: skip


@pytest.mark.parametrize(
    ("memory", "tokens", "measured"),
    [
        ({}, 65536, 19.20),
        ({"offload": True, "keep_attention": True, "tiled_mlp": 8192}, 65536, 13.20),
        ({"checkpoint": False}, 16384, 10.72),
    ],
)
def test_live_bytes_are_those_of_an_h100(memory, tokens, measured):
    """GiB of two layers in benchmarks/results/gpu.md, of which cuBLAS's workspace of 60 MiB is not
    allocated by the step."""
    config = {**LLAMA_8B_CONFIG, "num_hidden_layers": 2}
    traced = trace_stage(recipe(**memory), config, tokens, 1, 1)
    assert traced.device_bytes / GIB == pytest.approx(measured - 60 / 1024, abs=0.1)
    assert traced.host_bytes == 0  # what the last two layers need stays on the device


def test_peaks_are_linear_in_the_layers_to_the_byte(monkeypatch):
    monkeypatch.setattr(trace, "_TOLERANCE", 1e-12)
    body = recipe("full", {"shard": 2}, offload=True, tiled_mlp=512, keep_attention=True)
    traced = trace_stage(body, SMALL, 1024, 1, 2)
    assert traced.exact
    assert traced.host_bytes == (8 - 2) * 1024 * (256 * 2 + 256 * 2 + 8 * 4)
    assert all(size == int(size) >= 0 for size in traced.highest.values())
    assert not dist.is_initialized()


def test_the_third_trace_must_lie_on_the_line_of_the_others():
    def step(size):
        return Trace({trace.UPDATE: {trace.PARAMETERS: size}}, 2 * size, {"send": size}, size)

    result = trace.extrapolate([step(30), step(40), step(50)], (3, 4, 5), 32)
    assert result == step(320)
    assert result.exact
    assert not trace.extrapolate([step(30), step(40), step(50.1)], (3, 4, 5), 32).exact


def test_messages_of_a_ring_are_those_of_the_algorithm():
    """Keys and values in bfloat16 go to the other of two, in forward pass, recomputation and
    backward pass of each layer; their float32 gradients in both steps."""
    config = {**SMALL, "num_hidden_layers": 1}
    keys = 2 * 4 * 32 * 512 // 2  # keys and values, heads, head size, tokens
    for kept, passes in ((False, 3), (True, 2)):
        body = recipe(parallel={"context": 2, "algorithm": "ring"}, keep_attention=kept)
        traced = trace_stage(body, config, 512, 1, 2)
        assert traced.sent["send"] == keys * (passes * 2 + 2 * 4)


def test_a_70b_over_contexts_heads_and_shards():
    """One layer over 2 x 2 x 2 processes, everything trained; larger meshes and longer rows are in
    benchmarks/rehearse.py."""
    parallel = {"context": 2, "ulysses": 2, "shard": 2}
    body = recipe("full", parallel, offload=True, tiled_mlp=16384, loss_chunk=16384)
    traced = trace_stage(body, LLAMA_70B, 2**17, 1, 8)
    parameters = 2 * 128256 * 8192 + 8192 + 855_654_400  # embedding and head, last norm, layer
    assert traced.highest[trace.PARAMETERS] == pytest.approx(parameters * 4 / 8, rel=1e-5)
    assert traced.highest[trace.MOMENTS] == pytest.approx(parameters * 8 / 8, rel=1e-5)
    assert traced.highest[trace.GATHERED] >= 2 * 128256 * 8192 * 2  # embedding and head, narrow
    assert {"all-to-all", "all-gather", "reduce-scatter"} <= set(traced.sent)


def test_the_command_prints_the_trace_beside_the_formula(tmp_path, monkeypatch):
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {toy: {hidden: 128, layers: 1}}\nmethod: lora\n"
        "stages: [{length: 1k, steps: 3, batch: 4}]\n"
        "data: {sources: [{name: a, synthetic: notes}]}\nmemory: {keep_attention: false}\n"
    )
    line = ["plan", str(path), "--gpus", "2xH100", "--trace"]
    done = CliRunner().invoke(cli.app, [*line, "--json"])
    assert done.exit_code == 0, done.output
    (traced,) = json.loads(done.stdout)["traces"]
    assert sum(traced["classes"].values()) == traced["device_bytes"]
    assert traced["exact"]
    traced["sent_bytes"]["all-gather"] = 3e9
    monkeypatch.setattr(plan, "_traces", lambda *_: [plan.StageTrace(**traced | {"exact": False})])
    shown = CliRunner().invoke(cli.app, line, env={"COLUMNS": "200"}).stdout
    assert "of live tensors each; formula" in shown
    assert "all-gather 3 GB" in shown
    assert "not linear in the number of layers" in shown


def test_what_cannot_be_traced_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="adamw8bit cannot be traced"):
        trace_stage(recipe(optimizer={"name": "adamw8bit"}), SMALL, 64, 1, 1)
    body = recipe("recover").model_copy(
        update={"recover": recipe("recover").recover.model_copy(update={"teacher": "t"})}
    )
    with pytest.raises(InputError, match="teacher cannot be traced"):
        trace_stage(body, SMALL, 64, 1, 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {toy: {hidden: 32}}\nstages: [{length: 64, steps: 1}]\n"
        "data: {sources: [{name: a, synthetic: notes}]}\n"
    )
    with pytest.raises(InputError, match="describe some"):
        plan.plan_training(path, trace=True)
