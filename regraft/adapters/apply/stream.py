"""Writes a grafted checkpoint tensor by tensor: W + s B A in float32 row blocks, rounded once.

Tensors that the adapter does not change are copied as bytes, the others are computed in blocks, so
that memory depends on neither the model nor its largest tensor. The rounding error is measured at
the same time. A tensor with a guard is read twice, the guard's beside it: its factors need the
smallest and largest movement of the whole tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from regraft import progress
from regraft.adapters.apply.guard import Guard, Movement
from regraft.adapters.apply.match import Change, Match
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.header import TensorInfo
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.shard_plan import PlannedTensor
from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.checkpoint.write.staging import Staging
from regraft.device import run_in_threads
from regraft.errors import CheckpointError

_BLOCK = 1 << 20  # elements of a thread's block: 4 MB in float32


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write. source: the tensor that it starts from, for an untied head the
    embedding."""

    name: str
    source: TensorInfo
    dtype: torch.dtype
    change: Change | None

    @property
    def planned(self) -> PlannedTensor:
        """Name, shape and dtype as written."""
        return PlannedTensor(self.name, self.source.shape, self.dtype)


@dataclass
class TensorSums:
    """Squared norms of one changed tensor.

    With D the change in float32, and W + D - E the tensor as rounded to the output's dtype:
    change: ||D||^2; loss: ||E||^2; stored: ||D - E||^2. guard_scales: sum of the guard's factors of
    the `guarded` weights.
    """

    change: float = 0.0
    loss: float = 0.0
    stored: float = 0.0
    guard_scales: float = 0.0
    guarded: int = 0

    @property
    def along(self) -> float:
        """<D, D - E>: the part of the stored change along D."""
        return (self.change + self.stored - self.loss) / 2


def output_tensors(
    target: Checkpoint, match: Match, dtype: torch.dtype | None
) -> list[OutputTensor]:
    """Every tensor of the output in the target's order.

    dtype: of all floating-point tensors; None keeps the target's dtypes.
    """
    infos = dict(target.tensors)
    if match.untied_head is not None and match.untied_head not in infos:
        assert match.embedding is not None, "an untied head was the embedding"
        infos[match.untied_head] = target.tensors[match.embedding]
    return [
        OutputTensor(
            name,
            info,
            dtype if dtype is not None and info.dtype.is_floating_point else info.dtype,
            match.changes.get(name),
        )
        for name, info in infos.items()
    ]


def write_tensors(
    lora: Adapter,
    target: Checkpoint,
    outputs: list[OutputTensor],
    scale: float,
    writer: CheckpointWriter,
    staging: Staging,
    device: torch.device,
    guard: Guard | None = None,
) -> dict[str, TensorSums]:
    """Write every tensor. Returns the sums of the changed ones by name.

    Raises CheckpointError for NaN, infinity and values that the output's dtype cannot hold.
    """
    results: dict[str, TensorSums] = {}
    total = sum(output.source.nbytes for output in outputs)
    with progress.bar("Grafting", total, unit="bytes") as bar:

        def make(output: OutputTensor) -> None:
            name, source = output.name, output.source.name
            done = staging.done(f"graft:{name}")
            if output.change is None:
                if not writer.finished(name):
                    if not target.is_finite(source):
                        raise CheckpointError(
                            f"Tensor '{source}' of {target.name} holds NaN or infinite numbers; "
                            "give a sound checkpoint."
                        )
                    if output.dtype == output.source.dtype:
                        writer.copy(name, target, source)
                    else:
                        writer.write(name, _converted(target, output))
            elif done is not None and writer.finished(name):
                results[name] = TensorSums(**done)
            else:
                sums = TensorSums()
                blocks = _changed(lora, target, output, output.change, scale, device, sums, guard)
                writer.write(name, blocks)
                _refuse_overflow(target, output, sums)
                results[name] = sums
                staging.record(f"graft:{name}", **asdict(sums))
            bar.advance(output.source.nbytes)

        threads = torch.get_num_threads() if device.type == "cpu" else 1
        run_in_threads(outputs, make, threads, size=lambda output: output.source.nbytes)
    return {output.name: results[output.name] for output in outputs if output.name in results}


def _refuse_overflow(target: Checkpoint, output: OutputTensor, sums: TensorSums) -> None:
    if not (math.isfinite(sums.change) and math.isfinite(sums.loss)):
        raise CheckpointError(
            f"Tensor '{output.name}' of {target.name} holds NaN or infinite numbers, or the "
            f"changed one does not fit {output.dtype}; give a sound checkpoint or a smaller "
            "--scale."
        )


def _converted(target: Checkpoint, output: OutputTensor) -> Iterator[Tensor]:
    """The tensor in row blocks of another dtype."""
    for block in _row_blocks(target, output.source):
        stored = block.to(output.dtype)
        if not torch.isfinite(stored).all():
            raise CheckpointError(
                f"Tensor '{output.name}' of {target.name} does not fit {output.dtype}; choose "
                "another --dtype."
            )
        yield stored if output.source.shape else stored.reshape(())


def _row_blocks(target: Checkpoint, info: TensorInfo, count: int | None = None) -> Iterator[Tensor]:
    """The tensor's rows, some at a time; a scalar is one row. count: of rows from the first on."""
    if not info.shape:
        yield target.tensor(info.name).reshape(1)
        return
    stop = info.shape[0] if count is None else count
    step = max(1, _BLOCK // max(1, math.prod(info.shape[1:])))
    for start in range(0, stop, step):
        yield target.rows(info.name, start, min(start + step, stop))


def _changed(
    lora: Adapter,
    target: Checkpoint,
    output: OutputTensor,
    change: Change,
    scale: float,
    device: torch.device,
    sums: TensorSums,
    guard: Guard | None,
) -> Iterator[Tensor]:
    """The new tensor in row blocks of the output's dtype; fills `sums` on the way."""
    exact = torch.float64 if output.source.dtype == torch.float64 else torch.float32
    movement = None
    if guard is not None:
        movement = _movement(target, output.source, change, guard, device)
    if change.kind == "factors":
        b, a = (part.to(device) for part in change.factors(lora))
        b = b * scale
        if movement is None:
            gram = (b.T @ b).double() * (a @ a.T).double()
            sums.change = max(float(gram.sum()), 0.0)
    elif change.kind == "difference":
        dense = lora.difference(change.key)
    else:
        dense = lora.replacement(change.key)
    start = 0
    for block in _row_blocks(target, output.source):
        rows = max(0, min(change.rows - start, block.shape[0]))
        if rows == 0:
            yield block.to(output.dtype)
            start += block.shape[0]
            continue
        at = slice(start, start + rows)
        old = block[:rows].to(device).to(exact)  # sent as stored, which is narrower
        if change.kind != "factors":
            part = (dense.reshape(-1) if dense.dim() == 0 else dense)[at].to(device).to(exact)
        if guard is not None and movement is not None:
            step = b[at].to(exact) @ a.to(exact) if change.kind == "factors" else part * scale
            scales = movement.scales(guard.moved(change.tensor, old, start))
            sums.change += _squared_norm(step.mul_(scales))
            sums.guard_scales += float(scales.sum(dtype=torch.float64))
            sums.guarded += scales.numel()
            new = step.add_(old)
        elif change.kind == "factors":
            new = torch.addmm(old, b[at].to(exact), a.to(exact))
        else:
            new = part if change.kind == "replacement" else old.add(part, alpha=scale)
            sums.change += _squared_norm(new - old)
        stored = new.to(output.dtype)
        if stored is new:  # nothing is rounded, but NaN and infinity must not pass
            sums.loss += 0.0 * float(torch.linalg.vector_norm(new))
            sums.stored += _squared_norm(new - old)
        else:
            wide = stored.to(exact)
            sums.stored += _squared_norm(wide - old)
            sums.loss += _squared_norm(new.sub_(wide))
        stored = stored.cpu()
        if rows < block.shape[0]:
            stored = torch.cat([stored, block[rows:].to(output.dtype)])
        yield stored if output.source.shape else stored.reshape(())
        start += block.shape[0]


def _movement(
    target: Checkpoint, source: TensorInfo, change: Change, guard: Guard, device: torch.device
) -> Movement:
    """The guard's smallest and largest movement of the rows that change.

    Raises CheckpointError where the guard holds NaN or infinity.
    """
    exact = torch.float64 if source.dtype == torch.float64 else torch.float32
    ranges: list[Tensor] = []
    start = 0
    for block in _row_blocks(target, source, change.rows):
        moved = guard.moved(change.tensor, block.to(device).to(exact), start)
        ranges.append(torch.stack(torch.aminmax(moved)))
        start += block.shape[0]
    low, high = torch.stack(ranges).T if ranges else torch.zeros(2, 1)
    movement = Movement(float(low.min()), float(high.max()))
    other = guard.tensors[change.tensor]
    if not math.isfinite(movement.high) and not guard.model.is_finite(other):
        raise CheckpointError(
            f"Tensor '{other}' of the guard {guard.model.name} holds NaN or infinite numbers; give "
            "a sound checkpoint."
        )
    return movement


def _squared_norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2
