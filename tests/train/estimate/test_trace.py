"""The real step run by shape alone: its bytes, against a GPU's and against itself."""

from __future__ import annotations

import json

import pytest
import torch.distributed as dist
from typer.testing import CliRunner

from regraft import cli
from regraft.errors import InputError
from regraft.train.estimate import plan, trace
from regraft.train.estimate.machine import GIB
from regraft.train.estimate.trace import trace_stage
from regraft.train.recipe.schema import Body

SMALL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512,
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8,
    "num_key_value_heads": 4, "num_hidden_layers": 8, "max_position_embeddings": 1024,
    "rope_theta": 5e5, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_8B = {
    **SMALL, "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
LLAMA_70B = {
    **SMALL, "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80,
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
    ("layers", "memory", "tokens", "measured"),
    [
        (4, {}, 65536, 21.04),
        (4, {"keep_attention": True}, 65536, 22.56),
        (4, {"offload": True}, 65536, 19.55),
        (4, {"tiled_mlp": 8192}, 65536, 15.04),
        (4, {"offload": True, "keep_attention": True, "tiled_mlp": 8192}, 65536, 14.05),
        (4, {"checkpoint": False}, 16384, 18.67),
    ],
)
def test_live_bytes_are_those_of_an_h100(layers, memory, tokens, measured):
    """GiB of benchmarks/results/gpu.md, of which cuBLAS's workspace of 60 MiB is no tensor of the
    step."""
    config = {**LLAMA_8B, "num_hidden_layers": layers}
    traced = trace_stage(recipe(**memory), config, tokens, 1, 1)
    assert traced.device_bytes / GIB == pytest.approx(measured - 60 / 1024, abs=0.1)
    if memory.get("offload"):
        a_token = 2 * 4096 + (2 * 4096 + 4 * 32 if memory.get("keep_attention") else 0)
        assert traced.host_bytes == layers * tokens * a_token


@pytest.mark.parametrize(
    ("method", "devices", "memory"),
    [("lora", 1, {}), ("lora", 4, {"offload": True, "tiled_mlp": 64}), ("full", 4, {})],
)
def test_three_to_five_layers_say_what_eight_take(method, devices, memory, monkeypatch):
    body = recipe(method, **memory)
    short = trace_stage(body, SMALL, 1024, 1, devices)
    assert short.exact
    monkeypatch.setattr(trace, "_LAYERS", (3, 4, 8))
    whole = trace_stage(body, SMALL, 1024, 1, devices)
    assert short.phases == whole.phases
    assert (short.sent, short.operators) == (whole.sent, whole.operators)
    assert not dist.is_initialized()


def test_layers_that_are_not_alike_are_noticed(monkeypatch):
    real = trace._trace

    def uneven(body, config, length, rows):
        result = real(body, config, length, rows)
        if config["num_hidden_layers"] == 5:
            result.phases[trace.UPDATE][trace.PARAMETERS] *= 1.01
        return result

    monkeypatch.setattr(trace, "_trace", uneven)
    assert not trace_stage(recipe(), SMALL, 256, 1, 1).exact


def test_messages_of_a_ring_are_those_of_the_algorithm():
    """Keys and values in bfloat16 go to the next of four, in forward pass, recomputation and
    backward pass three times a layer; their float32 gradients in each of four steps."""
    body = recipe(parallel={"context": 4, "algorithm": "ring"})
    traced = trace_stage(body, SMALL, 1024, 1, 4)
    keys = 2 * 4 * 32 * 1024 // 4  # keys and values, heads, head size, tokens
    assert traced.sent["send"] == 8 * keys * (3 * 3 * 2 + 4 * 4)
    kept = trace_stage(recipe(parallel={"context": 4, "algorithm": "ring"}, keep_attention=True),
                       SMALL, 1024, 1, 4)  # fmt: skip
    assert kept.sent["send"] == 8 * keys * (2 * 3 * 2 + 4 * 4)


def test_a_70b_over_1024_processes_and_4m_tokens():
    parallel = {"context": 32, "ulysses": 8, "shard": 4}
    body = recipe("full", parallel, offload=True, tiled_mlp=16384)
    traced = trace_stage(body, LLAMA_70B, 2**22, 1, 1024)
    assert traced.exact
    assert traced.highest[trace.PARAMETERS] == pytest.approx(70.55e9 * 4 / 1024, rel=0.01)
    assert traced.highest[trace.MOMENTS] == pytest.approx(70.55e9 * 8 / 1024, rel=0.01)
    assert traced.host_bytes == 80 * 2**22 / 256 * 8192 * 2
    assert {"send", "all-to-all", "all-gather", "reduce-scatter"} <= set(traced.sent)


def test_the_command_prints_the_trace_beside_the_formula(tmp_path, monkeypatch):
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {toy: {hidden: 128, layers: 6}}\nmethod: lora\n"
        "stages: [{length: 1k, steps: 3, batch: 4}]\n"
        "data: {sources: [{name: a, synthetic: notes}]}\nmemory: {keep_attention: false}\n"
    )
    line = ["plan", str(path), "--gpus", "2xH100", "--trace"]
    done = CliRunner().invoke(cli.app, [*line, "--json"])
    assert done.exit_code == 0, done.output
    (traced,) = json.loads(done.stdout)["traces"]
    assert sum(traced["of"].values()) == traced["device_bytes"]
    assert traced["exact"]
    monkeypatch.setattr(plan, "_traces", lambda *_: [plan.StageTrace(**traced)])
    shown = CliRunner().invoke(cli.app, line, env={"COLUMNS": "200"}).stdout
    assert "of live tensors each; formula" in shown
    assert "all-gather" in shown


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
