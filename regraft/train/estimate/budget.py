"""Memory that a training step needs, by formulas; its time is in `step_time`.

Per device, with S tokens on it and N devices:

    M = C + state / N + max(loss, backward, update)
    loss = E + S (a + 2 d) + loss chunk + gradient of the head
    backward = E + G + max(S a, gradients of layers / N + S a / L) + S w
    update = 2 gradients / N

state     stored parameters and the optimizer's moments, a teacher's parameters, on one device also
          the narrow copy that autocast keeps of trained matrices
gradients 4 bytes of each trained parameter; they replace the inputs as the backward pass proceeds,
          the first layer's after its working set
E, G      what FSDP gathers at a time, where N > 1: both embeddings as narrow as the arithmetic; a
          layer and the one fetched ahead, and 7 or 12 bytes of each parameter trained in the layer
          while gradients are summed
a         2 d L bytes of layer inputs a token (recomputing) and (2 q + 4 h)(L - 1) of attention's
          output and log-sum-exp where they are kept (q = h heads of their size; the last layer's
          are in w); one layer's of both if they wait on the host (during the loss, two). Without
          recomputation, of every layer 13.1 d + 4 q, what norms of queries and keys and trained
          ones save, and 8 for each unit of the MLP's width unless that is tiled
w         working set of one layer's backward (`layer_bytes`); 2 q more where devices share rows;
          without recomputation 17.4 d, of the last norm, 6 d less with fused_norms, which also
          makes a 4 d less; fused_swiglu makes the 8 a 6
C         what no tensor shows: context, libraries, communication buffers, fragmentation

a, G and w were counted: the live bytes of the real step (this package's attention, loss and LoRA,
FSDP2, AdamW) traced by shape alone (`trace`) for layers of Llama-3-8B and 70B, Qwen3-8B and 32B, 2
to 80 of them, 64k to 4M tokens, 1 to 1,024 devices. The formula is within 5% of them (a few layers,
all trained on one device, up to 13% above; a small one where the loss sets the peak, up to 15%
below), and within 3% of the peaks measured on an H100 (`benchmarks/results/gpu.md`). Other
architectures may differ. In float32 the bytes of activations double.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from regraft.train.estimate.layer_bytes import Peak, backward_peaks
from regraft.train.estimate.machine import GIB, Machine
from regraft.train.step.memory import RESIDENT

_EXCHANGE_BYTES = 2.0  # of bfloat16 arithmetic
# without recomputation:
_KEPT_BYTES, _KEPT_QUERY_BYTES, _KEPT_MLP_BYTES, _LAST_NORM_BYTES = 13.1, 4.0, 8.0, 17.4
_KEPT_NORM_BYTES, _KEPT_LAST_NORM_BYTES = 4.0, 6.0  # less with fused_norms
_KEPT_SWIGLU_BYTES = 2.0  # less with fused_swiglu
_LOGIT_BYTES = 8.6  # of one logit in the loss: float32 logits and log-probabilities; hidden states
_GRADIENT = 4  # bytes
_FOUR_BIT_BYTES = 0.5625  # of a weight of `load: {bits: 4}`, with its share of a scale
_TILE = 8192  # tokens, of the advice to compute the MLP in tiles


@dataclass(frozen=True)
class Shape:
    """A model's sizes. parameters: of all tensors; trained: those that learn."""

    parameters: int
    trained: int
    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    kv: int
    """Key-value heads x head size."""
    heads: int
    head: int
    """Size of a head."""
    query_norms: bool = False
    """Whether queries and keys are normalised, as in Qwen3."""
    tied: bool = False
    """Whether the head is the embedding."""

    @property
    def queries(self) -> int:
        """Heads x head size."""
        return self.heads * self.head

    @property
    def embeddings(self) -> int:
        """Parameters of embedding and head."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden

    @classmethod
    def of(
        cls, config: Mapping[str, Any], parameters: int, trained: int,
        *, query_norms: bool = False, tied: bool = False,
    ) -> Shape:  # fmt: skip
        """From a config.json, but for what only the model shows."""
        heads = int(config["num_attention_heads"])
        head = int(config.get("head_dim") or config["hidden_size"] // heads)
        return cls(
            parameters, trained, int(config["hidden_size"]), int(config["num_hidden_layers"]),
            int(config["intermediate_size"]), int(config["vocab_size"]),
            int(config.get("num_key_value_heads") or heads) * head, heads, head, query_norms, tied,
        )  # fmt: skip


@dataclass(frozen=True)
class Switches:
    """What decides the memory. tile: tokens of the MLP at a time, 0: all. trained_norms: whether
    norms learn. frozen_bytes, trained_bytes: of each parameter as stored, with the optimizer's
    moments; four_bit: whether frozen linear layers have 4 bits a weight; element: bytes of a number
    in the layers' arithmetic; loss_chunk: tokens whose logits exist at a time; teacher: whether a
    frozen model of the same shape is held; distill: whether it reads every row; overhead: C."""

    checkpoint: bool = True
    offload: bool = False
    keep_attention: bool = False
    tile: int = 0
    trained_norms: bool = False
    fused_norms: bool = False
    fused_rope: bool = False
    fused_swiglu: bool = False
    frozen_bytes: float = 2
    four_bit: bool = False
    trained_bytes: float = 12
    element: int = 2
    loss_chunk: int = 2048
    teacher: bool = False
    distill: bool = False
    overhead: float = 3 * GIB

    @property
    def narrow(self) -> bool:
        """Whether the arithmetic is narrower than float32, as fused kernels need it."""
        return self.element < _GRADIENT


def token_bytes(
    shape: Shape, switches: Switches, tokens: float, context: int
) -> tuple[float, list[Peak], float]:
    """Bytes of each of a device's `tokens`: what the layers keep on the device, the working set of
    one layer's backward, on the host."""
    scale, exchange = switches.element / 2, _EXCHANGE_BYTES * shape.queries if context > 1 else 0.0
    extra = switches.element * shape.hidden if switches.distill else 0
    fused = switches.fused_norms and switches.narrow
    swiglu = switches.fused_swiglu and switches.narrow
    if not switches.checkpoint:
        unit = _KEPT_MLP_BYTES - (_KEPT_SWIGLU_BYTES if swiglu else 0.0)
        mlp = 0.0 if switches.tile else unit * shape.intermediate
        norm = _KEPT_NORM_BYTES if fused else 0.0
        kept = (_KEPT_BYTES - norm) * shape.hidden + _KEPT_QUERY_BYTES * shape.queries + mlp
        result = 2 if switches.trained_norms and not fused else 0  # of a norm, kept where it learns
        kept += 2 * result * shape.hidden
        if shape.query_norms:
            kept += (result + (2 if fused else 4)) * (shape.queries + shape.kv)
        kept = scale * (kept + exchange)
        last = _LAST_NORM_BYTES + result - (_KEPT_LAST_NORM_BYTES if fused else 0.0)
        return kept * shape.layers, [Peak(scale * last * shape.hidden + extra, 7)], 0.0
    peaks = backward_peaks(
        shape.hidden, shape.queries, shape.kv, shape.intermediate, query_norms=shape.query_norms,
        tile=switches.tile / tokens, trained_norms=switches.trained_norms, fused_norms=fused,
        fused_swiglu=swiglu, offload=switches.offload,
    )  # fmt: skip
    working = [Peak(scale * (peak.token + exchange) + extra, peak.trained) for peak in peaks]
    inputs = float(switches.element * shape.hidden)
    attention = 0.0
    if switches.keep_attention:
        attention = float(switches.element * shape.head + max(4, switches.element)) * shape.heads
    if switches.offload:
        return inputs + attention, working, (inputs + attention) * max(shape.layers - RESIDENT, 0)
    return inputs * shape.layers + attention * (shape.layers - 1), working, 0.0


def memory(
    shape: Shape, switches: Switches, tokens: int, context: int, devices: int, replicate: int = 1
) -> tuple[float, float]:
    """(bytes on each device, bytes on all hosts) for rows of `tokens` over `context` devices;
    parameters are held `replicate` times by all devices."""
    local = tokens / context
    inputs, peaks, host = token_bytes(shape, switches, local, context)
    # of the embedding or the head, the share that is trained
    embedding = shape.vocabulary * shape.hidden * shape.trained / shape.parameters
    frozen = shape.parameters - shape.trained
    state = frozen * switches.frozen_bytes + shape.trained * switches.trained_bytes
    if switches.four_bit:  # all but the embeddings; one matrix is whole at a time
        packed = max(frozen - shape.embeddings, 0)
        state -= packed * (switches.frozen_bytes - _FOUR_BIT_BYTES)
        state += switches.element * shape.hidden * shape.intermediate
    if switches.teacher:
        state += shape.parameters * switches.element
    if devices == 1 and switches.narrow:
        state += (shape.trained - embedding) * switches.element
    parts = devices / replicate
    state /= parts
    gradients = _GRADIENT * shape.trained / parts
    # the head's comes first, an embedding's of its own last
    by_layers = gradients - (0.0 if shape.tied else _GRADIENT * embedding / parts)
    chunk = _LOGIT_BYTES * shape.vocabulary * min(local, switches.loss_chunk)
    last = inputs if switches.offload else inputs / shape.layers
    layer = max(shape.parameters - shape.embeddings, 0) / shape.layers
    trained = layer * shape.trained / shape.parameters if devices > 1 else 0.0
    working = max(local * peak.token + trained * peak.trained for peak in peaks)
    before = by_layers * (1 - 1 / shape.layers)  # when the first layer begins
    backward = max(local * inputs, before + local * last) + working
    kept = min(RESIDENT, shape.layers) if switches.offload else 1  # layers, of `inputs` each
    loss = local * inputs * kept + chunk + (_GRADIENT + switches.element) * embedding
    loss += local * switches.element * shape.hidden  # the gradient of the last hidden states
    if devices > 1:  # FSDP gathers the embeddings, a layer and the next
        teachers = shape.vocabulary * shape.hidden if switches.distill else 0  # head
        root = (shape.embeddings + teachers) * switches.element
        backward += root + 2 * layer * switches.element
        loss += root
    return switches.overhead + state + max(backward, loss, 2 * gradients), local * host * devices


def longest(shape: Shape, switches: Switches, machine: Machine) -> int:
    """Most tokens of a row, in steps of 1,024, that fit when all devices share it; 0 where the
    model does not fit."""

    def fits(blocks: int) -> bool:
        device, host = memory(shape, switches, 1024 * blocks, machine.devices, machine.devices)
        return device <= machine.memory and host <= machine.host

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return 1024 * low


def alternatives(
    shape: Shape, switches: Switches, machine: Machine
) -> list[tuple[str, Switches, int]]:
    """(what to switch, the switches, longest row), as set first, then each way to save more."""
    options, tile = [("as set", switches)], switches.tile or _TILE
    tiled: dict[str, Any] = {"checkpoint": True, "tile": tile}
    both = {**tiled, "offload": True}
    fused = {"fused_norms": True, "fused_swiglu": True}
    changes: list[tuple[str, dict[str, Any]]] = [
        ("checkpoint", {"checkpoint": True}),
        ("fused_norms and fused_swiglu", fused),
        ("tiled_mlp", tiled),
        ("offload", {"checkpoint": True, "offload": True}),
        ("offload and tiled_mlp", both),
        ("offload, tiled_mlp, fused_norms and fused_swiglu", {**both, **fused}),
    ]
    for name, change in changes:
        other = replace(switches, **change, keep_attention=False)
        works = "fused" not in name or (switches.narrow and not machine.is_cpu)
        if works and other not in [known for _, known in options]:
            options.append((name, other))
    return [(name, option, longest(shape, option, machine)) for name, option in options]
