"""What every card in Markdown keeps."""

from __future__ import annotations

import re
from itertools import groupby


def assert_tables_are_whole(card: str) -> None:
    """Each row of a table has as many cells as its head, and text after a table is not part of
    it."""
    for in_table, lines in groupby(card.splitlines(), lambda line: bool(line.strip())):
        block = list(lines)
        if not in_table or not block[0].startswith("|"):
            continue
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in block]
        assert set(cells) == {cells[0]}, block
