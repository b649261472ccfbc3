"""What reading a part found: records, broken ones, the hashes of files."""

from __future__ import annotations

from dataclasses import dataclass, field

from regraft.units import counted

_EXAMPLES = 5


@dataclass
class ReadReport:
    """records: lines, rows, files or folders that were read. broken: those left out because they
    cannot be read, the first few in `examples`; empty: those without text; books3: those marked as
    text of Books3. hashes: SHA-256 of files, by path."""

    records: int = 0
    broken: int = 0
    empty: int = 0
    books3: int = 0
    examples: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def has_room(self) -> bool:
        """Whether `examples` takes another one."""
        return len(self.examples) < _EXAMPLES

    def add_broken(self, message: str) -> None:
        """Count a record that cannot be read."""
        self.broken += 1
        if self.has_room:
            self.examples.append(message.rstrip("."))

    def left_out(self) -> list[str]:
        """Which records are left out, and why, as phrases."""
        phrases = []
        if self.broken:
            phrases.append(
                f"{self._of_records(self.broken)} broken and left out, such as: "
                f"{'; '.join(self.examples)}"
            )
        if self.empty:
            phrases.append(f"{self._of_records(self.empty)} without text and left out")
        return phrases

    def _of_records(self, number: int) -> str:
        return f"{number:,} of {counted(self.records, 'record')} {'is' if number == 1 else 'are'}"

    def include(self, other: ReadReport) -> None:
        """Add the report of another part of the source."""
        self.records += other.records
        self.broken += other.broken
        self.empty += other.empty
        self.books3 += other.books3
        self.examples = (self.examples + other.examples)[:_EXAMPLES]
        self.hashes.update(other.hashes)
