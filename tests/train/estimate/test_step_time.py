"""Formulas for the time of a step against steps that an H100 took, and their traffic counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from llama_shapes import LLAMA_8B, llama
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.llama import modeling_llama

from regraft.train.estimate import budget, step_time
from regraft.train.estimate.budget import Shape, Switches
from regraft.train.estimate.machine import GIB, parse_machine
from regraft.train.estimate.step_time import Flops, step_flops, step_seconds, step_traffic

_TWO = {"offload": True, "tile": 8192}
_ALL = {**_TWO, "keep_attention": True}
_FUSED = {"fused_norms": True}
# Peaks of live tensors on an H100, GiB, and seconds of a step (benchmarks/results/gpu.md): layers,
# switches, thousands of tokens. 128k and 256k are of an earlier run.
_KEEP = {"keep_attention": True}
_FAST = {**_FUSED, "fused_rope": True, "fused_swiglu": True}
MEASURED = [
    (32, {}, 64, 46.82, 15.84),
    (32, _KEEP, 64, 62.57, 13.84),
    (32, _KEEP | _FAST, 64, 57.57, 12.23),
    (2, {"checkpoint": False}, 16, 10.72, 0.1787),
    (4, {"checkpoint": False}, 16, 17.20, 0.2768),
    (2, _KEEP, 64, 19.70, 1.144),
    (4, _KEEP, 64, 22.56, 1.981),
    (2, _KEEP | _FAST, 64, 14.71, 1.034),
    (4, _KEEP | _FAST, 64, 17.56, 1.780),
    (2, _KEEP | _FUSED, 64, 18.20, 1.079),
    (4, _KEEP | _FUSED, 64, 21.06, 1.875),
    (2, _FAST, 64, 14.20, 1.144),
    (4, _FAST, 64, 16.04, 2.008),
    (2, {}, 64, 19.20, 1.251),
    (4, {}, 64, 21.04, 2.219),
    (2, _FUSED, 64, 17.70, 1.204),
    (4, _FUSED, 64, 19.54, 2.116),
    (2, {"offload": True}, 64, 18.70, 1.253),
    (4, {"offload": True}, 64, 19.55, 2.220),
    (2, {"tile": 8192}, 64, 13.19, 1.284),
    (4, {"tile": 8192}, 64, 15.04, 2.277),
    (2, _TWO, 64, 12.69, 1.286),
    (4, _TWO, 64, 13.55, 2.274),
    (2, _ALL, 64, 13.20, 1.167),
    (4, _ALL, 64, 14.05, 2.053),
    (2, _ALL | _FAST, 64, 9.958, 1.062),
    (3, _TWO, 128, 22.95, 5.505),
    (3, _ALL, 128, 23.96, 4.745),
    (2, _ALL, 256, 44.21, 10.56),
]


@pytest.mark.parametrize(("layers", "switches", "tokens", "peak", "seconds"), MEASURED)
def test_the_formulas_agree_with_what_an_h100_took(layers, switches, tokens, peak, seconds):
    """Measured are also cuBLAS's workspace, 0.06 GiB, and attention's, 0.24, where that sets the
    peak."""
    shape, how = llama(layers, False), Switches(**switches, overhead=0)
    device, _ = budget.memory(shape, how, tokens * 1024, 1, 1)
    assert device / GIB == pytest.approx(peak, rel=0.005, abs=0.31)
    assert _seconds(shape, how, tokens) == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize(
    ("layers", "switches", "saved"),
    [(2, _KEEP, 0.110), (4, _KEEP, 0.201), (32, _KEEP, 1.61), (2, {}, 0.107), (4, {}, 0.211)],
)
def test_fused_kernels_save_the_time_that_they_saved_on_an_h100(layers, switches, saved):
    shape, how = llama(layers, False), Switches(**switches)
    fused = replace(how, **_FAST)
    difference = _seconds(shape, how, 64) - _seconds(shape, fused, 64)
    assert difference == pytest.approx(saved, rel=0.1)


def _seconds(shape, switches, tokens):
    flops = step_flops(
        shape, tokens * 1024, full=False, checkpoint=switches.checkpoint,
        keep_attention=switches.keep_attention,
    )  # fmt: skip
    traffic = step_traffic(shape, switches, tokens * 1024)
    return step_seconds(shape, parse_machine("H100", None), flops, traffic, 1)


class _Traffic(TorchDispatchMode):
    """Counts the bytes of what operators read and write; views cost nothing."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        read, written = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
            for tree in ((args, kwargs), result)
        )
        known = {tensor.untyped_storage()._cdata for tensor in read}
        if func._schema.is_mutable or written[0].untyped_storage()._cdata not in known:
            self.total += sum(
                min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
                for tensor in read + written
            )
        return result


@pytest.mark.parametrize("name", ["norm", "SwiGLU"])
def test_traffic_is_that_of_the_operators_of_transformers(name):
    """Each operator's inputs and outputs, for an element of bfloat16."""
    x, y = (torch.randn(8, 512, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    norm = modeling_llama.LlamaRMSNorm(512).bfloat16()
    norm.weight.requires_grad_(False)
    forwards, expected = {
        "norm": (lambda: norm(x), step_time._NORM),
        "SwiGLU": (lambda: torch.nn.functional.silu(x) * y, step_time._SWIGLU),
    }[name]
    with _Traffic() as counter:
        result = forwards()
    assert counter.total / x.numel() == pytest.approx(expected.forward, rel=0.03)
    grad, counter.total = torch.ones_like(result), 0
    with counter:
        result.backward(grad)
    assert counter.total / x.numel() == pytest.approx(expected.backward, rel=0.03)


def test_recomputation_tiles_and_a_teacher_move_more_bytes_and_fused_kernels_fewer():
    def bytes_of(**switches):
        return step_traffic(LLAMA_8B, Switches(**switches), 1)

    once = bytes_of(checkpoint=False)
    mlp = 10 * 14336 * 32
    assert bytes_of(checkpoint=False, tile=8192) - once == pytest.approx(mlp)
    assert bytes_of(tile=8192) == bytes_of()
    assert bytes_of(distill=True) - bytes_of() == pytest.approx(bytes_of() - once)
    for fused in ("fused_norms", "fused_rope", "fused_swiglu"):
        assert bytes_of(**{fused: True}) < bytes_of()
        assert bytes_of(**{fused: True}, element=4) == bytes_of()
    assert bytes_of(fused_norms=True, trained_norms=True) == bytes_of()
    normed = replace(LLAMA_8B, query_norms=True)
    saved = step_traffic(normed, Switches(), 1) - bytes_of()
    assert saved == pytest.approx((2 * 36 + 84) * 5120 * 32)


def test_a_frozen_head_is_multiplied_twice_a_token_and_layers_three_times():
    """It is not recomputed; with a teacher it is, and the teacher's is multiplied too."""
    head = Shape(2 * 1000 * 64, 0, 64, 0, 192, 1000, 64, 1, 64)
    both = [step_flops(head, 10, full=False, checkpoint=c, distill=c).linear for c in (False, True)]
    assert both == [4 * 64000 * 10, 8 * 64000 * 10]
    assert step_flops(head, 10, full=False, checkpoint=True).linear == both[0]
    layer = replace(head, parameters=head.parameters + 5000, layers=1)
    more = step_flops(layer, 10, full=False, checkpoint=True).linear - both[0]
    assert more == 6 * 5000 * 10


def test_time_and_links_of_a_step():
    lora = step_flops(LLAMA_8B, 262144, full=False, checkpoint=True)
    assert lora.total == pytest.approx(9.4e16, rel=0.05)  # 6 P S + 4.5 attention
    gpus = replace(parse_machine("8xH100", None), attention_rate=400e12)
    needed = step_time.link_needed(LLAMA_8B, gpus, 131072, 8)
    assert needed == pytest.approx(10.7e9, rel=0.01)  # F (N - 1) / (2 S)
    assert step_time.link_needed(LLAMA_8B, gpus, 131072, 1) == 0
    wide = replace(LLAMA_8B, heads=64)  # twice the operations for the same keys and values
    assert step_time.link_needed(wide, gpus, 131072, 8) == needed / 2


def test_a_step_never_takes_less_than_starting_its_operators():
    """A toy on a fast GPU: 2 layers of 2,200 operators, 5 microseconds each, in 3 passes."""
    toy = Shape(300_000, 300_000, 128, 2, 192, 246, 64, 4, 32)
    gpus = parse_machine("H100", None)
    assert step_seconds(toy, gpus, Flops(1e9, 0), 1e9, 3) == pytest.approx(0.066)
    large = step_seconds(LLAMA_8B, gpus, Flops(1e16, 8e16), 1e12, 1)
    work = 1e16 / gpus.rate + 8e16 / gpus.attention_rate
    assert large == pytest.approx(work + 1e12 / (0.87 * 3.35e12))
    known = replace(gpus, bandwidth=None)  # a CPU's rates are those of whole steps
    assert step_seconds(LLAMA_8B, known, Flops(1e16, 8e16), 1e12, 1) == pytest.approx(work)
