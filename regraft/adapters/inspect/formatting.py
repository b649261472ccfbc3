"""The cells, tables and lists that `regraft inspect` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from regraft.adapters.inspect.comparisons import TotalChange
from regraft.records import DistanceRecord

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

LISTED = 8  # longest list of names printed in full; --json has all


def pairs_table(title: str, lines: Iterable[Iterable[str]]) -> Table:
    """A two-column table of (label, text) lines under a title."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title), title_justify="left", title_style="bold", show_header=False,
        box=None, padding=(0, 2, 0, 0),
    )  # fmt: skip
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in lines:
        table.add_row(Text(label), Text(text))
    return table


def column_table(title: str, headings: list[str]) -> Table:
    """An empty table with a title and these headings, its first column left-aligned."""
    from rich.table import Table

    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None,
        padding=(0, 2, 0, 0), header_style="dim",
    )  # fmt: skip
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=i > 0)
    return table


def note(text: str) -> Text:
    """A dim paragraph, for the definitions below a table."""
    from rich.text import Text

    return Text(f"\n{text}", style="dim")


def names_list(title: str, names: Iterable[str]) -> Text:
    """A titled list of names, cut after LISTED."""
    from rich.text import Text

    listed = list(names)
    more = f"\n  and {len(listed) - LISTED} more (--json has all)" if len(listed) > LISTED else ""
    lines = "".join(f"\n  {name}" for name in listed[:LISTED])
    return Text.assemble("\n", (title, "bold"), f" ({len(listed)}){lines}{more}")


def arrow(before: str, after: str) -> str:
    """'before  ->  after', or one value where both are equal."""
    return f"{before}  ->  {after}" if before != after else f"{after} (both)"


def change_cells(row: TotalChange) -> tuple[str, str, str]:
    """The cells norm, relative change and cosine of a row."""
    return f"{row.delta_norm:.4g}", percent(row.relative_delta), cosine(row.cosine)


def spectrum_cells(row: TotalChange) -> tuple[str, str]:
    """The cells effective rank and share above rounding noise of a row."""
    share = row.above_noise
    ranks = "-"
    if row.effective_rank_min is not None and row.effective_rank_max is not None:
        ranks = range_text(row.effective_rank_min, row.effective_rank_max, "{:.1f}")
    return ranks, "-" if share is None else f"{share:.1%}"


def range_text(low: float, high: float, form: str) -> str:
    """'low to high', or one number where both are formatted alike."""
    least, most = form.format(low), form.format(high)
    return least if least == most else f"{least} to {most}"


def role_distances(roles: Mapping[str, DistanceRecord]) -> str:
    """The sampled distance of each role as 'role percent, ...'."""
    return ", ".join(f"{role} {percent(record.distance)}" for role, record in roles.items())


def percent(share: float | None) -> str:
    """A share as a percentage with at least two significant digits, '-' for None."""
    if share is None:
        return "-"
    return f"{share:.2%}" if share >= 1e-3 or share == 0 else f"{100 * share:.2g}%"


def cosine(value: float | None) -> str:
    """A cosine with five decimals, '-' for None."""
    return "-" if value is None else f"{value:.5f}"


def decimal(value: float | None) -> str:
    """A number with three decimals, '-' for None."""
    return "-" if value is None else f"{value:.3f}"


def count(number: int, noun: str) -> str:
    """'1 noun' or 'n nouns'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def with_revision(name: str | None, revision: str | None) -> str:
    """'name @ revision', the revision cut to 12 characters."""
    return f"{name or 'not named'}{f' @ {revision[:12]}' if revision else ''}"
