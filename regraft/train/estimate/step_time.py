"""Time of a training step, and the bandwidth that hides its messages, by formulas.

    seconds = linear / rate + attention / attention rate + traffic / bandwidth

linear and attention are floating-point operations, traffic the bytes that all other operators read
and write in a device's memory. Rates are those that whole steps reached on an H100 (`machine`).
Small models take the time to start all operators: tracing a LoRA step of Llama-3-8B counted 71,000
for 32 layers, recomputation included.

Traffic was counted in a trace by shape alone, operator by operator with the strides of its tensors,
for Llama-3-8B's layers in bfloat16; in float32 it differs. Bytes of one element, in a forward pass
(and again where the layer is recomputed) and in the backward pass:

                        transformers     one kernel
    norm                36    84         4     6
    RoPE                36    58         4     4
    SwiGLU              10    18         6    10
    all others of d     12    45

Norms that are trained are float32, for which there is no kernel: fused_norms saves no time there.
Some of these ran at less than the H100's 2.9 TB/s and are counted as the bytes that would have
taken as long: in RoPE's forward pass the products of bfloat16 with float32 tables (12 bytes) at 1.0
and the concatenation of halves (4) at 0.9; of the loss, 28 of each logit, the softmax's 8 at half.
"""

from __future__ import annotations

from dataclasses import dataclass

from regraft.train.estimate.budget import Shape, Switches
from regraft.train.estimate.machine import Machine

_CALLS = 2200  # operators of a layer in one forward, recomputation, backward and update (counted)


@dataclass(frozen=True)
class _Bytes:
    """Of one element, read and written."""

    forward: float
    backward: float

    def of(self, forwards: int) -> float:
        """In so many forward passes and one backward pass."""
        return forwards * self.forward + self.backward


_NORM, _FUSED_NORM = _Bytes(36, 84), _Bytes(4, 6)
_ROPE, _FUSED_ROPE = _Bytes(20 + 12 * 2.9 / 1.0 + 4 * 2.9 / 0.9, 58), _Bytes(4, 4)
_SWIGLU, _FUSED_SWIGLU = _Bytes(10, 18), _Bytes(6, 10)
_OTHERS = _Bytes(12, 45)  # of d: residuals, sums of gradients, copies to other layouts
_LOGIT = 20.0 + 2 * 8


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, those of attention's scores and sums apart from all others."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention

    def __mul__(self, rows: float) -> Flops:
        return Flops(self.linear * rows, self.attention * rows)


def step_flops(
    shape: Shape,
    tokens: int,
    *,
    full: bool,
    checkpoint: bool,
    keep_attention: bool = False,
    distill: bool = False,
) -> Flops:
    """Operations of one row: forward, recomputation and backward, and the forward of a teacher of
    the same shape with `distill`. keep_attention: it is not recomputed.

    Linear layers 2 P a token forward and 2 P (frozen) or 4 P (trained) backward; causal attention
    2 S^2 q L forward and 2.5 times that backward. The head is recomputed with `distill` alone.
    """
    backward = 4 if full else 2
    extra = int(checkpoint) + int(distill)
    head = shape.vocabulary * shape.hidden
    layers = shape.parameters - (head if shape.tied else 2 * head)  # looking up takes none
    linear = (2 + 2 * extra + backward) * float(layers)
    linear += (2 + 4 * int(distill) + backward) * float(head)
    repeated = extra - int(checkpoint and keep_attention)
    attention = 2.0 * tokens**2 * shape.heads * shape.head * shape.layers * (3.5 + repeated)
    return Flops(linear * tokens, attention)


def step_traffic(shape: Shape, switches: Switches, tokens: int) -> float:
    """Bytes that operators other than matrix products and attention read and write for one row, as
    far as they take as long as at the full bandwidth."""
    one_pass = switches.fused_norms and switches.narrow and not switches.trained_norms
    norm = _FUSED_NORM if one_pass else _NORM
    rope = _FUSED_ROPE if switches.fused_rope and switches.narrow else _ROPE
    swiglu = _FUSED_SWIGLU if switches.fused_swiglu and switches.narrow else _SWIGLU
    forwards = 1 + int(switches.checkpoint) + int(switches.distill)
    mlp = forwards + int(switches.tile > 0 and not switches.checkpoint)
    rotated = shape.queries + shape.kv
    layer = 2 * norm.of(forwards) * shape.hidden + _OTHERS.of(forwards) * shape.hidden
    layer += rope.of(forwards) * rotated + swiglu.of(mlp) * shape.intermediate
    if shape.query_norms:
        layer += norm.of(forwards) * rotated
    ends = norm.of(1) * shape.hidden + _LOGIT * shape.vocabulary
    return (layer * shape.layers + ends) * tokens


def step_seconds(
    shape: Shape, machine: Machine, flops: Flops, traffic: float, passes: int
) -> float:
    """Seconds of an optimizer step of `flops` and `traffic` on all devices together, in `passes`
    forward and backward passes on each. Small models are limited by the time to start operators."""
    start = passes * shape.layers * _CALLS * machine.call_seconds
    work = flops.linear / machine.rate + flops.attention / machine.attention_rate
    if machine.bandwidth is not None:
        work += traffic / machine.bandwidth
    return max(work / machine.devices, start)


def link_needed(shape: Shape, machine: Machine, tokens: int, context: int) -> float:
    """Bytes a second each way that hide the exchange of keys and values behind attention:
    F (N - 1) kv / (2 S q) x 4 bytes for keys and values, F the rate of attention on a device."""
    if context == 1:
        return 0.0
    return machine.attention_rate * (context - 1) * 4 * shape.kv / (2 * tokens * shape.queries)
