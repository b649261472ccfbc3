"""Pages of the documentation that are generated from the code when the site is built.

`PAGES` has the function that writes each page, by the page's path in the site.
"""

from __future__ import annotations

from collections.abc import Callable

from generate import benchmarks, commands, examples, methods, python_api, recipes

PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": commands.page,
    "reference/python.md": python_api.page,
    "reference/train.md": recipes.train_page,
    "reference/data.md": recipes.data_page,
    "reference/merge.md": recipes.merge_page,
    "reference/graft.md": recipes.graft_page,
    "reference/evaluate.md": recipes.evaluate_page,
    "reference/merge-methods.md": methods.page,
    "reference/examples.md": examples.page,
    "benchmarks.md": benchmarks.page,
}
