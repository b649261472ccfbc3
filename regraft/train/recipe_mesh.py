"""The mesh of processes that a recipe's block `parallel` describes."""

from __future__ import annotations

from typing import Any

from regraft.device import pick_device
from regraft.parallel import Mesh
from regraft.parallel.groups import process_count
from regraft.train.recipe.schema import Body


def make_mesh(body: Body, device: str) -> Mesh:
    """The recipe's mesh over the processes of this run. Processes that the stated degrees leave go
    to context if that is 'auto', else to shard. Raises InputError where they do not divide."""
    parallel, kernel = body.parallel, "auto"
    if body.deterministic and pick_device(device).type == "cuda":
        kernel = "flash"  # cuDNN's gradients differ from run to run
    world = process_count()
    degrees = {
        "context": parallel.context,
        "ulysses": parallel.ulysses,
        "shard": parallel.shard,
        "replicate": parallel.replicate,
    }
    free = [name for name, size in degrees.items() if size == "auto"]
    if world == 1 and all(size in ("auto", 1) for size in degrees.values()):
        return Mesh.create(1, 1, 1, 1, kernel=kernel, device=device)
    rest = "context" if "context" in free else ("shard" if "shard" in free else None)
    sizes: dict[str, Any] = {name: 1 if name in free else size for name, size in degrees.items()}
    if rest is not None:
        sizes[rest] = "auto"
    return Mesh.create(**sizes, algorithm=parallel.algorithm, kernel=kernel, device=device)
