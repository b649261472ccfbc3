"""Formulas for memory against traced steps of Llama-3-8B's layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from llama_shapes import LLAMA_8B, LLAMA_8B_CONFIG, llama, llama_70b, qwen3_8b, qwen3_32b

from regraft.parallel import Mesh
from regraft.train.estimate import budget, plan
from regraft.train.estimate.budget import Switches
from regraft.train.estimate.machine import GIB, parse_machine
from regraft.train.estimate.step_time import step_flops
from regraft.train.estimate.throughput import shape_of
from regraft.train.estimate.trace import trace_stage
from regraft.train.recipe.schema import Body
from regraft.train.step.learner import untrained_learner

_TWO = {"offload": True, "tile": 8192}
_ALL = {**_TWO, "keep_attention": True}
_FUSED = {"fused_norms": True}
_SWIGLU = {"fused_swiglu": True}
_KERNELS = {"fused_rope": True, **_SWIGLU}
# Live GiB of the real step on each device, traced by shape alone (`regraft plan --trace`): layers,
# everything trained, switches, thousands of tokens, devices that share the row, live.
TRACED = [
    (32, False, {}, 64, 1, 46.76),
    (32, False, {}, 128, 1, 78.09),
    (32, False, {"keep_attention": True}, 64, 1, 62.50),
    (32, False, _TWO, 64, 1, 25.41),
    (32, False, _ALL, 128, 1, 36.25),
    (4, False, {}, 256, 8, 11.90),
    (32, False, {}, 256, 8, 20.37),
    (4, True, {}, 64, 1, 43.22),
    (4, True, {"tile": 8192}, 128, 1, 47.83),
    (4, True, {}, 64, 8, 10.51),
    (8, True, {}, 64, 8, 11.98),
    (4, True, {"tile": 8192}, 512, 8, 19.14),
    (32, True, {}, 64, 8, 21.28),
    (32, True, {"tile": 8192}, 256, 8, 28.87),
    (32, True, _ALL | {"tile": 4096}, 64, 8, 21.55),
    (32, True, _ALL | {"tile": 4096}, 256, 8, 24.59),
    (32, True, _ALL | {"tile": 4096}, 512, 8, 29.99),
    (32, True, _ALL | {"tile": 4096}, 1024, 8, 40.79),
    (3, False, _FUSED, 64, 1, 18.55),
    (3, False, _FUSED | {"tile": 8192}, 64, 1, 10.06),
    (3, False, _FUSED | {"tile": 8192}, 128, 1, 16.89),
    (3, False, _FUSED | _ALL, 128, 1, 16.91),
    (3, False, _FUSED | {"checkpoint": False}, 16, 1, 13.15),
    (3, False, _FUSED, 256, 8, 10.84),
    (3, False, _FUSED | _ALL, 1024, 8, 18.67),
    (3, True, _FUSED | _ALL, 512, 8, 15.14),
    (3, False, _SWIGLU, 64, 1, 16.56),
    (3, False, _SWIGLU | {"checkpoint": False}, 16, 1, 12.58),
    (3, False, _FUSED | _SWIGLU, 64, 1, 15.06),
    (3, False, _FUSED | _SWIGLU | {"checkpoint": False}, 16, 1, 11.83),
    (3, False, _FUSED | _SWIGLU, 256, 8, 9.096),
]
# The same of other meshes and models (benchmarks/rehearse.py): shape, switches, thousands of
# tokens, devices that share the row, devices, live.
_SENT = {"offload": True}
TRACED_MESHES = [
    (llama(3, False), _SENT | {"tile": 4096}, 256, 8, 8, 8.349),
    (llama(3, False), _SENT | {"tile": 16384}, 256, 8, 8, 9.229),
    (llama(32, True), _TWO, 512, 8, 8, 29.475),
    (llama_70b(80, False), _TWO, 256, 8, 8, 34.103),
    (llama_70b(80, True), _TWO, 2048, 64, 64, 42.866),
    (llama_70b(80, True), _TWO, 4096, 256, 1024, 24.115),
    (llama_70b(3, True), {}, 128, 8, 8, 28.186),
    (llama_70b(3, True), _ALL, 256, 8, 64, 27.534),
    (llama_70b(3, False), {"tile": 8192, "keep_attention": True}, 128, 4, 4, 20.994),
    (llama_70b(3, False), _SENT, 256, 8, 8, 24.392),
    (llama_70b(3, False), _SENT | {"tile": 2048}, 256, 8, 8, 18.392),
    (llama_70b(3, False), _SENT | {"tile": 16384}, 256, 8, 8, 20.151),
    (llama_70b(3, False), _SENT, 32, 1, 1, 24.465),
    (llama_70b(3, False), _SENT | {"tile": 2048}, 32, 1, 1, 18.467),
    (qwen3_8b(3, False), {}, 64, 1, 1, 20.031),
    (qwen3_8b(3, True), _SENT, 1024, 8, 8, 43.059),
    (qwen3_32b(3, True), _SENT, 1024, 8, 8, 76.112),
    (qwen3_32b(3, False), {"tile": 8192}, 64, 1, 1, 22.766),
]


@pytest.mark.parametrize(("layers", "everything", "switches", "tokens", "devices", "live"), TRACED)
def test_the_formula_is_within_five_percent_of_the_live_bytes_of_the_real_step(
    layers, everything, switches, tokens, devices, live
):
    bare = Switches(**switches, trained_norms=everything, overhead=0)
    device, _ = budget.memory(llama(layers, everything), bare, tokens * 1024, devices, devices)
    assert device / GIB == pytest.approx(live, rel=0.05)


@pytest.mark.parametrize(
    ("shape", "switches", "tokens", "context", "devices", "live"), TRACED_MESHES
)
def test_the_formula_holds_for_70b_and_qwen3_for_other_meshes_and_tiles(
    shape, switches, tokens, context, devices, live
):
    everything = shape.trained == shape.parameters
    bare = Switches(**switches, trained_norms=everything, overhead=0)
    device, _ = budget.memory(shape, bare, tokens * 1024, context, devices)
    assert device / GIB == pytest.approx(live, rel=0.03)


@pytest.mark.parametrize(
    ("method", "memory"), [("lora", {"tiled_mlp": 8192, **_FUSED, **_KERNELS}), ("recover", {})]
)
def test_the_formula_follows_the_step_as_it_is(method, memory):
    """Two layers of Llama-3-8B's width over 64k tokens, traced now: a change of the step that
    needs more memory is noticed here."""
    config = {**LLAMA_8B_CONFIG, "vocab_size": 32000, "num_hidden_layers": 2}
    body = Body(
        model="m", method=method, dtype="bfloat16", lora={"rank": 16, "norms": False},
        stages=[{"length": 64, "steps": 1}], data={"sources": [{"name": "a", "text": "a"}]},
        memory={**memory, "loss_chunk": 8192},
    )  # fmt: skip
    live = trace_stage(body, config, 65536, 1, 1).device_bytes
    shape = shape_of(untrained_learner(body, config, "m", Mesh.create(device="cpu")))
    switches = replace(plan.switches_of(body, parse_machine("H100", None)), overhead=0)
    device, _ = budget.memory(shape, switches, 65536, 1, 1)
    assert 0.99 * live <= device <= live * 1.3


def test_norms_of_queries_trained_norms_the_mlps_width_and_a_tied_head_count():
    """Two layers of a Qwen3 with more queries than its width, whose MLP is narrow, traced now."""
    config = {
        **LLAMA_8B_CONFIG, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
        "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 16,
        "head_dim": 128, "vocab_size": 8192, "num_hidden_layers": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    body = Body(
        model="m", method="lora", dtype="bfloat16", lora={"rank": 16, "norms": True},
        stages=[{"length": 64, "steps": 1}], data={"sources": [{"name": "a", "text": "a"}]},
    )  # fmt: skip
    live = trace_stage(body, config, 16384, 1, 1).device_bytes
    shape = shape_of(untrained_learner(body, config, "m", Mesh.create(device="cpu")))
    assert shape.tied
    switches = replace(plan.switches_of(body, parse_machine("H100", None)), overhead=0)
    device, _ = budget.memory(shape, switches, 16384, 1, 1)
    assert device == pytest.approx(live, rel=0.03)


def test_fused_kernels_are_advised_on_gpus_and_in_narrow_arithmetic():
    shape, gpu = llama(32, False), parse_machine("H100", None)
    longest = {name: most for name, _, most in budget.alternatives(shape, Switches(), gpu)}
    assert longest["fused_norms and fused_swiglu"] > 1.15 * longest["as set"]
    every = "offload, tiled_mlp, fused_norms and fused_swiglu"
    assert longest[every] > longest["offload and tiled_mlp"]
    fused = Switches(fused_norms=True, fused_swiglu=True)
    for switches, machine in (
        (fused, gpu), (Switches(element=4), gpu), (Switches(), replace(gpu, is_cpu=True)),
    ):  # fmt: skip
        names = [name for name, *_ in budget.alternatives(shape, switches, machine)]
        assert names == ["as set", "tiled_mlp", "offload", "offload and tiled_mlp"]


def test_replicated_processes_hold_parameters_again():
    rest = (Switches(), 65536, 4)
    assert budget.memory(LLAMA_8B, *rest, 8, 2)[0] == budget.memory(LLAMA_8B, *rest, 4)[0]


def test_layer_inputs_on_the_host_are_240_kib_a_token():
    _, host = budget.memory(LLAMA_8B, Switches(offload=True), 1_200_000, 1, 1)
    assert host == 1_200_000 * 240 * 1024


def test_the_longest_row_just_fits():
    gpus = parse_machine("8xH100-80", None)
    for switches in (Switches(), Switches(tile=8192), Switches(offload=True, tile=8192)):
        most = budget.longest(LLAMA_8B, switches, gpus)

        def fits(tokens, switches=switches):
            device, host = budget.memory(LLAMA_8B, switches, tokens, 8, 8)
            return device <= gpus.memory and host <= gpus.host

        assert fits(most)
        assert not fits(most + 2048)


def test_a_tied_head_takes_operations_and_is_gathered_once():
    tied = replace(LLAMA_8B, parameters=LLAMA_8B.parameters - 128256 * 4096, tied=True)
    both = [replace(shape, trained=0) for shape in (LLAMA_8B, tied)]
    flops = [step_flops(s, 4096, full=False, checkpoint=True) for s in both]
    assert flops[0] == flops[1]
    sizes = [budget.memory(s, Switches(frozen_bytes=0), 65536, 8, 8)[0] for s in both]
    assert sizes[0] - sizes[1] == pytest.approx(128256 * 4096 * 2)


def test_kept_attention_takes_memory_where_it_is_kept_and_saves_its_recomputation():
    shape = llama(32, False)
    switches = Switches(offload=True, keep_attention=True)
    a_token = (shape.layers - 2) * (2 * 4096 + 2 * 4096 + 4 * 32)
    _, host = budget.memory(shape, switches, 65536, 1, 1)
    assert host == 65536 * a_token
    on_device, _ = budget.memory(shape, replace(switches, offload=False), 65536, 1, 1)
    assert on_device > budget.memory(shape, switches, 65536, 1, 1)[0] + 0.9 * host
    flops = [
        step_flops(shape, 65536, full=False, checkpoint=True, keep_attention=keep)
        for keep in (False, True)
    ]
    assert flops[0].total - flops[1].total == 2 * 65536**2 * 4096 * 32
    assert flops[0].linear == flops[1].linear


def test_a_teacher_takes_memory_and_time():
    shape = llama(32, True)
    gpus = parse_machine("8xH100", None)
    bodies = [
        Body(
            model="m", method="recover", recover=recover,
            stages=[{"length": 64, "steps": 1}], data={"sources": [{"name": "a", "text": "a"}]},
        )
        for recover in ({}, {"teacher": "t", "distill": 0}, {"teacher": "t"})
    ]  # fmt: skip
    alone, held, read = (plan.switches_of(body, gpus) for body in bodies)
    sizes = [budget.memory(shape, s, 65536, 8, 8)[0] for s in (alone, held, read)]
    assert sizes[1] - sizes[0] == pytest.approx(shape.parameters * 2 / 8)
    assert sizes[2] > sizes[1]
    flops = [
        step_flops(shape, 65536, full=True, checkpoint=True, distill=s.distill)
        for s in (held, read)
    ]
    assert flops[1].total / flops[0].total == pytest.approx(10 / 8, rel=0.05)  # a forward more
