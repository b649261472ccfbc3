"""Checks from three models whether an adapter that is not extracted yet can be applied."""

from __future__ import annotations

from regraft.adapters import lineage
from regraft.adapters.apply.apply import BYTES_PER_SECOND
from regraft.adapters.apply.check import merged_context
from regraft.checkpoint.hf.roles import checkpoint_roles
from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import LineageError
from regraft.records import Plain


def check_future_graft(
    base: str, extended: str, target: str, policy: str | None, *, force: bool
) -> dict[str, Plain]:
    """The plan of `regraft apply`, as far as it is known before the adapter exists. policy: of the
    output's context.

    Raises LineageError for a target that is no relative of the base (unless `force`), or whose
    context is neither the base's nor the extended model's where no policy is given.
    """
    with Checkpoint.open(base) as b, Checkpoint.open(extended) as e, Checkpoint.open(target) as t:
        relation = lineage.relate(lineage.sketch(b), lineage.sketch(t), checkpoint_roles(b))
        if relation.verdict == "stranger" and not force:
            raise LineageError(
                f"{target} is no relative of {base}: {lineage.describe(relation)}; give a model "
                "made from that base, or force: true under apply."
            )
        own, before, after = checkpoint_context(t), checkpoint_context(b), checkpoint_context(e)
        if policy is None and merged_context(own, before, after) is None:
            raise LineageError(
                f"{target} has context {own.describe()}, the adapter takes {before.describe()} to "
                f"{after.describe()}; say which to use: context: adapter, context: checkpoint or "
                "context: theta=..,length=.."
            )
        return {
            "read_bytes": t.total_bytes,
            "write_bytes": t.total_bytes,
            "seconds": round(t.total_bytes / BYTES_PER_SECOND, 1),
        }
