"""Published suites from the user's files: `--suite zeroscrolls:PATH`, `loogle:` and `bamboo:`.

`cases` makes tasks from texts with questions; the others read the layouts of the suites' files.
"""

from __future__ import annotations

from collections.abc import Callable

from regraft.evaluate.local.bamboo import read as _bamboo
from regraft.evaluate.local.loogle import read as _loogle
from regraft.evaluate.local.zeroscrolls import read as _zeroscrolls
from regraft.evaluate.tasks import Task

READERS: dict[str, Callable[[str], list[Task]]] = {
    "zeroscrolls": _zeroscrolls,
    "loogle": _loogle,
    "bamboo": _bamboo,
}
