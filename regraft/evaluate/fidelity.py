"""Extraction fidelity: adapters put back on the base that they were taken from.

    fidelity = (S of base with adapter - S of base) / (S of donor - S of base)

of the scores S of the same items: the share of what the donor learned that an adapter's rank holds,
before any graft. An adapter is examined like every model, under its donor's RoPE and length.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.apply.check import check_graft
from regraft.adapters.folder import digests
from regraft.adapters.reader import Adapter
from regraft.checkpoint.source import Checkpoint
from regraft.errors import CheckpointError, InputError
from regraft.evaluate.answers.distributed import from_first, meet
from regraft.evaluate.answers.model import Source
from regraft.parallel import Mesh


@dataclass(frozen=True)
class Fidelity:
    """What the models' names stand for. adapters: name -> its place, mean rank and digests."""

    base: str
    donor: str
    adapters: dict[str, dict[str, Any]]


def adapted(sources: list[Source], adapters: tuple[str, ...]) -> tuple[list[Source], Fidelity]:
    """`sources` with the base, where it is not among them, and each adapter on it, lowest rank
    first.

    The donor is the one called so; the base is the one called so, or what the first adapter's
    record names. Raises InputError where either is missing or an adapter is of another base, and
    what `adapters.apply` raises where it does not fit.
    """
    named = {source.name: source for source in sources}
    if "donor" not in named:
        raise InputError("--adapter needs what the adapters were taken from: donor=MODEL.")
    opened = [Adapter.open(place) for place in adapters]
    base = named.get("base") or Source("base", _recorded_base(opened[0]))
    fingerprint = base.fingerprint()
    for lora in opened:
        _check(lora, base, named["donor"])
    twin = next(
        (
            source.name
            for source in sources
            if source.context is None
            and source.fingerprint() == fingerprint
            and source.spec() == base.spec()
        ),
        None,
    )
    found = sources if twin else [*sources, base]
    facts: dict[str, dict[str, Any]] = {}
    taken = {source.name for source in found}
    for lora in sorted(opened, key=_mean_rank):
        name = _name(lora)
        if name in taken:
            name += f" ({Path(lora.name).name})"
        if name in taken:
            raise InputError(f"--adapter {lora.name} is given twice; give each adapter once.")
        taken.add(name)
        spec = lora.context[1] if lora.context else named["donor"].spec()
        found = [*found, Source(name, base.place, spec, lora.name)]
        facts[name] = {
            "place": lora.name, "rank": round(_mean_rank(lora), 3), "sha256": digests(lora.folder),
        }  # fmt: skip
    return found, Fidelity(twin or base.name, "donor", facts)


@contextmanager
def merged(source: Source, spool: Path, mesh: Mesh) -> Iterator[Source]:
    """The source itself or, where it has an adapter, one whose weights lie in `spool` until all
    processes end the block. Collective."""
    if source.adapter is None:
        yield source
        return
    folder, adapter, place = spool / "adapted", source.adapter, source.place

    def make() -> None:
        apply_lora(adapter, place, folder, context="checkpoint", overwrite=True, resume=True)

    try:
        from_first(mesh, make)
        yield replace(source, place=str(folder), adapter=None)
        meet(mesh)
    finally:
        if mesh.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _recorded_base(lora: Adapter) -> str:
    if lora.record is None:
        raise InputError(f"{lora.name} does not say what its base is: give base=MODEL.")
    recorded = lora.record.base
    name = f"{recorded.name}@{recorded.revision}" if recorded.revision else recorded.name
    try:
        with Checkpoint.open(name):
            return name
    except CheckpointError:
        raise InputError(
            f"The base of {lora.name}, {name}, is not to be found: give base=MODEL."
        ) from None


def _check(lora: Adapter, base: Source, donor: Source) -> None:
    """Raises InputError where the adapter was taken from another base; a dry run of its application
    refuses what does not fit."""
    if lora.record is not None:
        for recorded, source in ((lora.record.base, base), (lora.record.extended, donor)):
            full = recorded.fingerprint.startswith("full:")
            with Checkpoint.open(source.place) as checkpoint:
                same = checkpoint.fingerprint(full=full) == recorded.fingerprint
            if not same and source is base:
                raise InputError(
                    f"{base.place} is not the base that {lora.name} was taken from "
                    f"({recorded.name}); give that one as base=MODEL."
                )
            if not same:
                progress.warn(
                    f"{lora.name} was taken from {recorded.name}, which is not the donor "
                    f"{source.place}: its fidelity is to another model."
                )
    with Checkpoint.open(base.place) as checkpoint:
        check_graft(lora, checkpoint, context="checkpoint").raise_refusals()


def _ranks(lora: Adapter) -> list[int]:
    """Of every module; zeros that only fill a stored factor up do not count."""
    if lora.record is not None:
        return [module.rank for module in lora.record.modules.values()]
    return [lora.rank(tensor) for tensor in lora.modules]


def _mean_rank(lora: Adapter) -> float:
    ranks = _ranks(lora)
    return sum(ranks) / max(1, len(ranks))


def _name(lora: Adapter) -> str:
    ranks = _ranks(lora) or [0]
    low, high = min(ranks), max(ranks)
    return f"donor, rank {low}" if low == high else f"donor, rank {low} to {high}"
