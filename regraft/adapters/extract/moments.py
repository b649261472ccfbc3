"""The inputs of every projection on long text: their second moments, layer by layer.

The extended model reads the calibration rows under its own RoPE, one layer at a time
(`LayerStream`). Projections that get the same tensor, such as q, k and v, share one moment
C = E[x x'], summed in float64. A layer runs once for every two moments, the larger after the
smaller, so that beside the hidden states of all rows and one layer's weights no more than two
moments, or one and its root, are in memory. A resumed run computes the same hidden states again
and skips the moments of finished modules.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regraft import progress
from regraft.adapters.extract.select import Module, Plan
from regraft.checkpoint.hf.layers import LayerStream
from regraft.checkpoint.hf.tokenizer import load_tokenizer, tokenizer_paths
from regraft.checkpoint.read.source import Checkpoint
from regraft.data.calibration import calibration_rows
from regraft.errors import InputError
from regraft.lowrank.weighted import DAMPING, WeightedNorm
from regraft.records import CalibrationRecord
from regraft.rope import ContextSpec
from regraft.units import parse_tokens

_LENGTH, _TOKENS = "8k", "64k"
_CHUNK = 1024  # tokens of a float64 product
_SAMPLE = 2000  # characters by which two tokenizers are compared


@dataclass(frozen=True)
class Calibration:
    """The rows of a calibration, token ids (rows, length), and its record."""

    rows: Tensor
    record: CalibrationRecord


def open_calibration(
    path: str,
    length: str | int | None,
    tokens: str | int | None,
    base: Checkpoint,
    extended: Checkpoint,
    context: ContextSpec,
    *,
    seed: int,
    force: bool,
) -> Calibration:
    """Tokenise the text for the extended model, whose context is `context`.

    length: of a row, by default 8k or the context if that is shorter; tokens: of all rows, by
    default 64k. Raises InputError for a text that is too short, a length beyond the context, tokens
    without an embedding, tokenizers that read the text differently (unless `force`) and a model
    that cannot be run by layers; CheckpointError for a model without tokenizer.
    """
    limit = context.max_position_embeddings
    own_length = parse_tokens(length or min(parse_tokens(_LENGTH), limit), "--calibrate-length")
    total = parse_tokens(tokens or _TOKENS, "--calibrate-tokens")
    if own_length > limit:
        raise InputError(
            f"--calibrate-length {own_length} is more than the context of {extended.name}, {limit} "
            "tokens; give at most that."
        )
    if own_length < 2 or total < own_length:
        raise InputError(
            f"--calibrate-tokens {total} and --calibrate-length {own_length} make no row of at "
            "least 2 tokens; give more tokens or shorter rows."
        )
    tokenizer = load_tokenizer(extended)
    embedding = next(
        (i.shape[0] for n, i in extended.tensors.items() if n.endswith("embed_tokens.weight")), None
    )
    if embedding is None:
        raise InputError(f"{extended.name} has no embed_tokens; extract without --calibrate.")
    rows = calibration_rows(path, tokenizer, embedding, length=own_length, tokens=total, seed=seed)
    if tokenizer_paths(base) and not force:
        _check_same_tokens(tokenizer, base, extended, rows.ids[0])
    LayerStream(extended, rows.ids[:1, :2], torch.device("cpu"))
    return Calibration(
        rows.ids,
        CalibrationRecord(
            text=path, digest=rows.digest, length=own_length, tokens=rows.ids.numel(),
            damping=DAMPING,
        ),
    )  # fmt: skip


def _check_same_tokens(tokenizer: Any, base: Checkpoint, extended: Checkpoint, row: Tensor) -> None:
    """Raise InputError where the base's tokenizer cuts the beginning of a row otherwise."""
    text = tokenizer.decode(row[:_SAMPLE].tolist(), skip_special_tokens=True)[:_SAMPLE]
    own, other = (
        read(text, add_special_tokens=False, verbose=False)["input_ids"]
        for read in (tokenizer, load_tokenizer(base))
    )
    if own != other:
        raise InputError(
            f"The tokenizers of {base.name} and {extended.name} read the calibration text "
            "differently; give the models their own tokenizers, or --force if only the extended "
            "model's is right."
        )


def with_memory(plan: Plan, calibration: Calibration) -> Plan:
    """The plan with the memory of a calibrated extraction: hidden states of all rows, one layer,
    one row's activations, two moments of the widest inputs, and D L in float64."""
    modules = [module for module in plan.modules if module.layer is not None]
    if not modules:
        return plan
    first = [module for module in modules if module.layer == modules[0].layer]
    hidden = min(module.shape[1] for module in modules)
    widest = max(module.shape[1] for module in modules)
    weights = 4 * sum(math.prod(module.shape) for module in first)
    row = 4 * 4 * calibration.record.length * widest
    product = 8 * max(math.prod(module.shape) for module in modules)
    more = 4 * calibration.record.tokens * hidden + weights + row + 2 * 8 * widest**2 + product
    return replace(plan, peak_bytes=plan.peak_bytes + more)


def input_norms(
    extended: Checkpoint,
    calibration: Calibration,
    modules: Sequence[Module],
    device: torch.device,
    bar: progress.Bar,
) -> Iterator[tuple[WeightedNorm, list[Module]]]:
    """The norm of the inputs of `modules`, which are in layers, with the modules that share it.

    Raises InputError for NaN or infinity in the hidden states, and for a module without input.
    """
    if not modules:
        return
    stream = LayerStream(extended, calibration.rows, device)
    last = max(module.layer for module in modules if module.layer is not None)
    for number in range(last + 1):
        bar.advance(0, text=f"(reading the calibration text, layer {number})")
        stream.load(number)
        parts = {
            module.name.removeprefix(stream.module_name(number, "")): module
            for module in modules
            if module.layer == number
        }
        groups = stream.shared_inputs(parts) if parts else []
        if missing := parts.keys() - set(itertools.chain(*groups)):
            raise InputError(
                f"'{parts[min(missing)].name}' of {extended.name} gets no input of its own from a "
                "text; leave it out with --modules, or extract without --calibrate."
            )
        for start in range(0, len(groups), 2):
            pair = groups[start : start + 2]
            widths = [parts[group[0]].shape[1] for group in pair]
            keep = start + 2 >= len(groups) and number < last  # hidden states are needed no more
            moments = _moments(stream, number, [group[0] for group in pair], widths, device, keep)
            for group in pair:
                norm = WeightedNorm.from_moment(moments.pop(group[0]))
                yield norm, [parts[name] for name in group]
                del norm
        if not groups and number < last:
            stream.run(number, keep=True)


def _moments(
    stream: LayerStream,
    number: int,
    names: list[str],
    widths: list[int],
    device: torch.device,
    keep: bool,
) -> dict[str, Tensor]:
    """Module of the loaded layer -> mean of x x' over all tokens, (n, n) float64. keep: the layer's
    output becomes the hidden states."""
    moments = {
        name: torch.zeros(n, n, dtype=torch.float64, device=device)
        for name, n in zip(names, widths, strict=True)
    }

    def add_to(moment: Tensor) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            for chunk in inputs[0].flatten(0, -2).split(_CHUNK):
                wide = chunk.double()
                moment.addmm_(wide.T, wide)

        return hook

    hooks = [
        stream.layer.get_submodule(name).register_forward_pre_hook(add_to(moment))
        for name, moment in moments.items()
    ]
    stream.run(number, keep=keep)
    for hook in hooks:
        hook.remove()
    for moment in moments.values():
        moment.div_(stream.hidden.shape[0] * stream.hidden.shape[1])
    return moments
