"""Extraction fidelity: adapters applied to the base that they were extracted from.

    fidelity = (S(base with adapter) - S(base)) / (S(donor) - S(base))

with the scores S of the same items: the share of the donor's gain that an adapter of this rank
contains, before any graft. An adapter is evaluated like any model, with the donor's RoPE and its
length.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from regraft import progress
from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.apply.check import check_graft
from regraft.adapters.folder import digests
from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError
from regraft.evaluate.answers.distributed import barrier, broadcast_from_first
from regraft.evaluate.answers.model import Source
from regraft.evaluate.result import ADAPTED_PREFIX, EvaluatedAdapter
from regraft.evaluate.settings import GraftPoint
from regraft.parallel import Mesh


@dataclass(frozen=True)
class Fidelity:
    """The names of the compared models; adapters: by the name of the base with the adapter."""

    base: str
    donor: str
    adapters: dict[str, EvaluatedAdapter]


def add_adapters(sources: list[Source], adapters: tuple[str, ...]) -> tuple[list[Source], Fidelity]:
    """`sources`, the base if it is not among them, and the base with each adapter by its rank.

    The donor is the source with this name; the base is the source with this name, or the model that
    the first adapter's record names. Raises InputError if either is missing or an adapter belongs
    to another base, and what `check_graft` raises if it does not fit.
    """
    named = {source.name: source for source in sources}
    if "donor" not in named:
        raise InputError(
            "--adapter needs the model that the adapters were extracted from: donor=MODEL."
        )
    opened = [Adapter.open(location) for location in adapters]
    base = named.get("base") or Source("base", _recorded_base(opened[0]))
    fingerprint = base.fingerprint()
    for lora in opened:
        _check(lora, base, named["donor"])
    same_as_base = next(
        (
            source.name
            for source in sources
            if source.context is None
            and source.fingerprint() == fingerprint
            and source.spec() == base.spec()
        ),
        None,
    )
    result = sources if same_as_base else [*sources, base]
    records: dict[str, EvaluatedAdapter] = {}
    names = {source.name for source in result}
    for lora in sorted(opened, key=_mean_rank):
        name = _name(lora)
        if name in names:
            name += f" ({Path(lora.name).name})"
        if name in names:
            raise InputError(f"--adapter {lora.name} is given twice; give each adapter once.")
        names.add(name)
        spec = lora.context[1] if lora.context else named["donor"].spec()
        result = [*result, Source(name, base.location, spec, lora.name)]
        records[name] = EvaluatedAdapter(
            place=lora.name, rank=round(_mean_rank(lora), 3), sha256=digests(lora.folder)
        )
    return result, Fidelity(same_as_base or base.name, "donor", records)


def graft_sources(recipient: Source, points: Sequence[GraftPoint]) -> list[Source]:
    """The recipient with the adapter of each point. Raises what `apply_lora` refuses."""
    sources = []
    for point in points:
        with Checkpoint.open(recipient.location) as checkpoint:
            lora = Adapter.open(point.adapter)
            verdict = check_graft(lora, checkpoint, scale=point.scale, context=point.context)
        verdict.raise_refusals()
        sources.append(
            Source(point.name, recipient.location, verdict.context, point.adapter, point.scale)
        )
    return sources


@contextmanager
def merged(source: Source, spool: Path, mesh: Mesh) -> Iterator[Source]:
    """The source itself or, if it has an adapter, one whose merged weights are in `spool` until all
    processes leave the block. Collective."""
    if source.adapter is None:
        yield source
        return
    folder, adapter, target = spool / "adapted", source.adapter, source.location

    def make() -> None:
        apply_lora(
            adapter, target, folder, scale=source.scale, context="checkpoint", overwrite=True,
            resume=True,
        )  # fmt: skip

    try:
        broadcast_from_first(mesh, make)
        yield replace(source, location=str(folder), adapter=None)
        barrier(mesh)
    finally:
        if mesh.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _recorded_base(lora: Adapter) -> str:
    if lora.record is None:
        raise InputError(f"{lora.name} does not record its base; give base=MODEL.")
    recorded = lora.record.base
    name = f"{recorded.name}@{recorded.revision}" if recorded.revision else recorded.name
    try:
        with Checkpoint.open(name):
            return name
    except CheckpointError:
        raise InputError(
            f"The base of {lora.name}, {name}, cannot be found; give base=MODEL."
        ) from None


def _check(lora: Adapter, base: Source, donor: Source) -> None:
    """Raises InputError if the adapter was extracted from another base or does not fit the base."""
    if lora.record is not None:
        for recorded, source in ((lora.record.base, base), (lora.record.extended, donor)):
            full = recorded.fingerprint.startswith("full:")
            with Checkpoint.open(source.location) as checkpoint:
                same = checkpoint.fingerprint(full=full) == recorded.fingerprint
            if not same and source is base:
                raise InputError(
                    f"{base.location} is not the base that {lora.name} was extracted from "
                    f"({recorded.name}); give that one as base=MODEL."
                )
            if not same:
                progress.warn(
                    f"{lora.name} was extracted from {recorded.name}, which is not the donor "
                    f"{source.location}: its fidelity is to another model."
                )
    with Checkpoint.open(base.location) as checkpoint:
        check_graft(lora, checkpoint, context="checkpoint").raise_refusals()


def _ranks(lora: Adapter) -> list[int]:
    """The rank of every module, without zero padding."""
    if lora.record is not None:
        return [module.rank for module in lora.record.modules.values()]
    return [lora.rank(tensor) for tensor in lora.modules]


def _mean_rank(lora: Adapter) -> float:
    ranks = _ranks(lora)
    return sum(ranks) / max(1, len(ranks))


def _name(lora: Adapter) -> str:
    ranks = _ranks(lora) or [0]
    low, high = min(ranks), max(ranks)
    return f"{ADAPTED_PREFIX}rank {low}" + (f" to {high}" if low != high else "")
