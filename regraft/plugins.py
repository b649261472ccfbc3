"""Merge methods and tasks from other packages, found by their entry points.

A package registers in its pyproject.toml

    [project.entry-points."regraft.merge_methods"]
    any_name = "package.module"            # imported; it uses the decorator `method`

    [project.entry-points."regraft.tasks"]
    any_name = "package.module:TASK"       # a regraft.evaluate.tasks.Task

and `regraft merge` and `regraft evaluate` accept them by their own names.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from regraft.errors import InputError

MERGE_METHODS, TASKS = "regraft.merge_methods", "regraft.tasks"


@cache
def load_plugins(group: str) -> tuple[tuple[str, Any], ...]:
    """(package, object) of every entry point of the group, in the order of their names.

    Raises InputError naming the package whose entry point cannot be loaded.
    """
    loaded = []
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        package = point.dist.name if point.dist else point.value
        try:
            loaded.append((package, point.load()))
        except Exception as error:  # importing a package runs its code, which may raise anything
            reason = " ".join(str(error).split())
            raise InputError(
                f"The plug-in {point.name} of the package {package} cannot be loaded "
                f"({type(error).__name__}: {reason}); update or uninstall it."
            ) from error
    return tuple(loaded)
