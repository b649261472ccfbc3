"""Cut a batch into each rank's part of the sequence, and join results of the parts again."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, TypedDict, cast

import torch
import torch.distributed as dist
from torch import Tensor

from regraft.errors import InputError
from regraft.parallel.exchange.choose import Work, pick
from regraft.parallel.exchange.function import Attention, Exchange
from regraft.parallel.exchange.gather import Gather
from regraft.parallel.exchange.ring import Ring
from regraft.parallel.exchange.ulysses import over_heads
from regraft.parallel.kept_attention import KeptAttention
from regraft.parallel.kernels.choose import choose
from regraft.parallel.kernels.spans import Rows
from regraft.parallel.layout import Starts, gather_spans, multiple, pieces, ring_spans
from regraft.parallel.mesh import Processes

Batch = Mapping[str, Tensor]
"""Whole rows, for `cut`: some of input_ids, labels, position_ids and documents."""

KEY: Final = "context_parallel"
"""The keyword argument under which a part carries its `Shard` into the model."""
_KNOWN = ("input_ids", "labels", "position_ids", "documents")


@dataclass(frozen=True, eq=False)
class Shard:
    """The sequence that a batch was cut from, as attention needs it. Lengths are in tokens."""

    mesh: Processes
    length: int
    """After padding to a multiple of what the mesh needs."""
    unpadded: int
    """Before padding."""
    documents: tuple[Starts, ...]
    """Where documents begin: one tuple for each row, or a single one that all rows share."""
    kept: KeptAttention | None = None
    """For a layer that is recomputed: saves its attention between the forward pass and then."""
    spans: dict[int | None, Rows] = field(default_factory=dict)
    """This rank's spans against the keys of each rank of a ring, or all keys (None), once made."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Causal attention over the whole sequence of this rank's q [B, H, s, D], k and v
        [B, Hk, s, D] -> [B, H, s, D], differentiable. Collective over context x ulysses."""
        mesh = self.mesh
        tokens = self.length // (mesh.context * mesh.ulysses)
        if q.shape[2] != tokens or len(self.documents) not in (1, q.shape[0]):
            raise InputError(
                f"The batch was cut to {tokens} tokens for each rank but the model was given "
                f"{q.shape[2]}: pass everything Mesh.cut returned, from the same call."
            )
        group = mesh.group("ulysses")
        with torch.autocast(q.device.type, enabled=False):  # kernels choose the type of their sums
            if group is None:
                return self._over_context(q, k, v, scale)
            return over_heads(partial(self._over_context, scale=scale), q, k, v, group)

    def algorithm(self, q: Tensor, k: Tensor) -> tuple[Literal["gather", "ring"], str]:
        """Which exchange carries q and k as they are after Ulysses, and why."""
        mesh = self.mesh
        if mesh.algorithm != "auto":
            return mesh.algorithm, "as requested"
        work = Work(
            self.length, mesh.context, q.shape[1], k.shape[1], q.shape[3], k.element_size(),
            q.shape[0],
        )  # fmt: skip
        return pick(work, mesh.machine)

    def _over_context(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        mesh, group = self.mesh, self.mesh.group("context")
        kernel = choose(q.device.type, q.dtype, q.shape[-1], mesh.kernel)
        exchange: Exchange
        if group is not None and self.algorithm(q, k)[0] == "ring":
            rows_of = [self._spans(source) for source in range(mesh.context)]
            exchange = Ring(rows_of, kernel, scale, group)
        else:
            exchange = Gather(self._spans(None), kernel, scale, group)
        return Attention.apply(q, k, v, exchange, self.kept)

    def _spans(self, source: int | None) -> Rows:
        if source not in self.spans:
            rank, ranks, length = self.mesh.context_rank, self.mesh.context, self.length
            self.spans[source] = [
                gather_spans(rank, ranks, length, starts)
                if source is None
                else ring_spans(rank, source, ranks, length, starts)
                for starts in self.documents
            ]
        return self.spans[source]


class Part(TypedDict, total=False):
    """This rank's tokens of a batch, as keyword arguments of a model: see `cut`."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    context_parallel: Shard


class Mesh(Processes):
    """The processes of a run and the cut of a batch between them. Made by `Mesh.create`."""

    def cut(self, batch: Batch, pad_token: int = 0) -> Part:
        """This rank's part of a batch, ready for `model(**part)`: see `cut`."""
        return cut(self, batch, pad_token)

    def join(self, local: Tensor, part: Part) -> Tensor:
        """Undo `cut` for a result [B, s, ...] of the same part: see `join`."""
        return join(self, local, part)


def cut(mesh: Processes, batch: Batch, pad_token: int = 0) -> Part:
    """This rank's part of a batch that all ranks of a sequence hold whole.

    batch: `input_ids` [B, S]; optional `labels` [B, S], ALREADY shifted (labels[i] is the token
    after input_ids[i], -100 where there is none); `position_ids` [B, S] or [1, S] (0..S-1 if
    absent); `documents` [B, S] or [1, S], a number for each token that changes where a document
    ends. Returns the same with s = S/(context x ulysses) tokens on the mesh's device, without
    `documents`, with `position_ids`, and with the `context_parallel` the attention needs.

    S is padded on the right to a multiple of `layout.multiple`: pad_token, label -100, a document
    of its own. Nothing sees padding, and it has no loss. Raises InputError for keys it does not
    know, shapes that disagree, documents that come back after they ended, and ranks of one
    sequence that hold different batches.
    """
    tokens = _checked(batch)
    unpadded = tokens["input_ids"].shape[1]
    length = -(-unpadded // (step := multiple(mesh.context, mesh.ulysses))) * step
    documents = _starts(tokens.pop("documents", None), unpadded, length)
    if mesh.context * mesh.ulysses > 1:
        _agree(mesh, tokens, documents)
    tokens.setdefault("position_ids", torch.arange(unpadded).unsqueeze(0))
    ranges = pieces(mesh.context_rank, mesh.context, mesh.ulysses_rank, mesh.ulysses, length)
    fill = {"input_ids": pad_token, "labels": -100}
    local: dict[str, Tensor] = {}
    for name, whole in tokens.items():
        if length > unpadded:
            end = whole.new_full((whole.shape[0], length - unpadded), fill.get(name, 0))
            whole = torch.cat((whole, end), 1)
        own = torch.cat([whole[:, start:stop] for start, stop in ranges], 1)
        local[name] = own.to(mesh.device, non_blocking=True)
    return cast("Part", {**local, KEY: Shard(mesh, length, unpadded, documents)})


def join(mesh: Processes, local: Tensor, part: Part) -> Tensor:
    """A result for each token [B, s, ...] of this rank's part, from all ranks of the sequence, in
    the order of the text and without padding: [B, S, ...]. Not differentiable. Collective."""
    shard = part[KEY]
    whole = local.new_empty(local.shape[0], shard.length, *local.shape[2:])
    if mesh.context * mesh.ulysses == 1:
        return local.detach()[:, : shard.unpadded]
    for ring in range(mesh.context):
        for inner in range(mesh.ulysses):
            offset = 0
            sent = _from(mesh, ring, inner, local)
            for start, stop in pieces(ring, mesh.context, inner, mesh.ulysses, shard.length):
                whole[:, start:stop] = sent[:, offset : offset + stop - start]
                offset += stop - start
    return whole[:, : shard.unpadded]


def _from(mesh: Processes, ring: int, inner: int, local: Tensor) -> Tensor:
    """The tensor of one rank of the sequence, by a broadcast over both dimensions."""
    sent = local.detach().clone()
    for name, source in (("ulysses", inner), ("context", ring)):
        group = mesh.group(name)  # type: ignore[arg-type]
        if group is not None:
            dist.broadcast(sent, group=group, group_src=source)
    return sent


def _checked(batch: Batch) -> dict[str, Tensor]:
    unknown = [name for name in batch if name not in _KNOWN]
    if unknown:
        raise InputError(
            f"A batch over a cut sequence has {', '.join(_KNOWN)}, not {', '.join(unknown)}; "
            "instead of an attention_mask pad on the right with label -100, or name documents."
        )
    if "input_ids" not in batch:
        raise InputError("The batch has no input_ids.")
    rows, length = batch["input_ids"].shape
    for name, value in batch.items():
        allowed = (rows,) if name in ("input_ids", "labels") else (rows, 1)
        if value.ndim != 2 or value.shape[1] != length or value.shape[0] not in allowed:
            raise InputError(
                f"The batch's {name} is {tuple(value.shape)} beside input_ids {rows, length}."
            )
    if not length:
        raise InputError("The batch has no tokens.")
    return dict(batch)


def _starts(documents: Tensor | None, unpadded: int, length: int) -> tuple[Starts, ...]:
    """Boundaries as integers; padding is one document more."""
    padding = (unpadded,) if length > unpadded else ()
    if documents is None:
        return ((0, *padding),)
    rows = []
    for row in documents.cpu():
        changes = (row[1:] != row[:-1]).nonzero().flatten() + 1
        starts = (0, *(int(i) for i in changes))
        if len({int(row[i]) for i in starts}) < len(starts):
            raise InputError(
                "A document comes back after another one began: number documents in order."
            )
        rows.append((*starts, *padding))
    return tuple(rows[:1]) if len(set(rows)) == 1 else tuple(rows)


def _agree(mesh: Processes, tokens: dict[str, Tensor], documents: tuple[Starts, ...]) -> None:
    """Raise InputError where ranks of one sequence hold different batches, which would hang."""
    text = tokens["input_ids"]
    checks = [zlib.crc32(repr((sorted(tokens), documents)).encode())]
    checks += [zlib.crc32(tokens[k].cpu().contiguous().numpy().tobytes()) for k in sorted(tokens)]
    checks = [*text.shape, *checks, *[0] * (len(_KNOWN) - len(checks))]
    mine = torch.tensor(checks, device=mesh.device)
    for name in ("context", "ulysses"):
        group = mesh.group(name)
        if group is None:
            continue
        everyone = [torch.empty_like(mine) for _ in range(group.size())]
        dist.all_gather(everyone, mine, group=group)
        if not all(torch.equal(theirs, mine) for theirs in everyone):
            raise InputError(
                f"The ranks that share a sequence hold different batches (rank {mesh.rank} has "
                f"{text.shape[0]} x {text.shape[1]} tokens): seed the data by Mesh.data_rank."
            )
