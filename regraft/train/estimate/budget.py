"""What a step needs: memory on device and host, time, and the link between devices.

Per device, with S tokens on it:   M = W + C + S (a (1 - f) 2 d L + w)

W  what is held for every parameter; C  9 GiB on a GPU for the loss chunk, buffers, gathered layers
and the allocator, on a CPU the loaded libraries; 2 d L  bytes of layer inputs a token, a of them
kept (1 recomputing, else the working set of every layer instead), f of those on the host; w  the
working set of one layer's backward, 27.5 d bytes a token and 5.7 for each unit of the MLP's width
unless that is tiled.

C and w are fitted to what ArcticTraining measured for Llama-3-8B on one H200 (65k to 1.2M tokens,
arXiv 2506.13996); they are a fit, not a derivation, and foreign architectures may differ. In
float32 the bytes of activations double. Time is floating-point operations over the machine's rate,
but at least the time to start all operators: tracing a LoRA step of Llama-3-8B counted 71,000 of
them for 32 layers, recomputation included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from regraft.train.estimate.machine import GIB, Machine

_ATTENTION_BYTES, _MLP_BYTES = 27.5, 40 / 7  # of bfloat16 arithmetic
_CALLS = 2200  # operators of a layer in one forward, recomputation, backward and update (counted)


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

    @classmethod
    def of(cls, config: Mapping[str, Any], parameters: int, trained: int) -> Shape:
        """From a config.json."""
        heads = int(config["num_attention_heads"])
        head = int(config.get("head_dim") or config["hidden_size"] // heads)
        return cls(
            parameters,
            trained,
            int(config["hidden_size"]),
            int(config["num_hidden_layers"]),
            int(config["intermediate_size"]),
            int(config["vocab_size"]),
            int(config.get("num_key_value_heads") or heads) * head,
        )


@dataclass(frozen=True)
class Switches:
    """What decides the memory. frozen_bytes, trained_bytes: of each parameter on the devices;
    whole_logits: the loss without chunks; element: bytes of a number in the layers' arithmetic;
    overhead: C."""

    checkpoint: bool = True
    offload: bool = False
    tiled: bool = False
    frozen_bytes: float = 2
    trained_bytes: float = 18
    whole_logits: bool = False
    element: int = 2
    overhead: float = 9 * GIB


def token_bytes(shape: Shape, switches: Switches) -> tuple[float, float]:
    """(bytes on the device, bytes on the host) of each token a device holds."""
    inputs = switches.element * shape.hidden * shape.layers
    working = _ATTENTION_BYTES * shape.hidden
    if not switches.tiled:
        working += _MLP_BYTES * shape.intermediate
    working *= switches.element / 2
    if switches.whole_logits:
        working += 12 * shape.vocabulary
    if not switches.checkpoint:
        return working * shape.layers, 0.0
    return (working, inputs) if switches.offload else (working + inputs, 0.0)


def held_bytes(shape: Shape, switches: Switches, devices: int) -> float:
    """W + C of one device: parameters are cut over all of them."""
    frozen = (shape.parameters - shape.trained) * switches.frozen_bytes
    return (frozen + shape.trained * switches.trained_bytes) / devices + switches.overhead


def memory(
    shape: Shape, switches: Switches, tokens: int, context: int, devices: int
) -> tuple[float, float]:
    """(bytes on each device, bytes on all hosts) for rows of `tokens` over `context` devices."""
    device, host = token_bytes(shape, switches)
    local = tokens / context
    return held_bytes(shape, switches, devices) + local * device, local * host * devices


def longest(shape: Shape, switches: Switches, machine: Machine) -> int:
    """Most tokens of a row that fit when all devices share it; 0 where the model does not fit."""
    device, host = token_bytes(shape, switches)
    room = machine.memory - held_bytes(shape, switches, machine.devices)
    most = room / device * machine.devices
    if host:
        most = min(most, machine.host / host)
    return max(0, int(most) // 1024 * 1024)


def step_flops(shape: Shape, tokens: int, *, full: bool, checkpoint: bool) -> float:
    """Floating-point operations of one row: forward, recomputation and backward.

    Linear layers 2 P a token forward and 2 P (frozen) or 4 P (trained) backward; causal attention
    2 S^2 d L forward and 2.5 times that backward.
    """
    passes = 2 + (2 if checkpoint else 0) + (4 if full else 2)
    matrices = shape.parameters - shape.vocabulary * shape.hidden  # looking up costs nothing
    attention = 2.0 * tokens**2 * shape.hidden * shape.layers * (4.5 if checkpoint else 3.5)
    return passes * matrices * tokens + attention


def step_seconds(shape: Shape, machine: Machine, flops: float, passes: int) -> float:
    """Seconds of an optimizer step of `flops` on all devices together, in `passes` forward and
    backward passes on each. Small models are limited by the time to start operators."""
    start = passes * shape.layers * _CALLS * machine.call_seconds
    return max(flops / (machine.rate * machine.devices), start)


def link_needed(shape: Shape, machine: Machine, tokens: int, context: int) -> float:
    """Bytes a second each way that hide the exchange of keys and values behind attention:
    F (N - 1) kv / (2 S d) x 4 bytes for keys and values, F the rate of a device."""
    if context == 1:
        return 0.0
    return machine.rate * (context - 1) * 4 * shape.kv / (2 * tokens * shape.hidden)


def alternatives(
    shape: Shape, switches: Switches, machine: Machine
) -> list[tuple[str, Switches, int]]:
    """(what to switch, the switches, longest row), as set first, then each way to save more."""
    options = [("as set", switches)]
    for name, change in (
        ("checkpoint", {"checkpoint": True}),
        ("tiled_mlp", {"checkpoint": True, "tiled": True}),
        ("offload", {"checkpoint": True, "offload": True}),
        ("offload and tiled_mlp", {"checkpoint": True, "offload": True, "tiled": True}),
    ):
        other = replace(switches, **change)
        if other not in [known for _, known in options]:
            options.append((name, other))
    return [(name, option, longest(shape, option, machine)) for name, option in options]
