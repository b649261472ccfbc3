"""The figures and checks of the parts: a JSON line for each, on disk at once, and their tables."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

Kind = Literal["machine", "figure", "check", "end"]
OK = "ok"


@dataclass(frozen=True)
class Line:
    """One line of the file. ok: whether a check held, or, at a part's end, whether it ran to its
    end. values: the measurements by name; an underscore separates words and units."""

    part: str
    kind: Kind
    name: str
    ok: bool = True
    values: dict[str, Any] = field(default_factory=dict)
    time: str = ""


class Report:
    """Lines of one part. A line is on disk when the call returns."""

    def __init__(self, file: Path, part: str) -> None:
        self.file, self.part = file, part

    def machine(self, **values: Any) -> None:
        """The card and the versions, for the head of the tables."""
        self._write("machine", "machine", True, values)

    def figure(self, name: str, **values: Any) -> None:
        """A measurement without a bound."""
        self._write("figure", name, True, values)

    def check(self, name: str, ok: bool, **values: Any) -> None:
        """A condition that must hold, with its measurements."""
        self._write("check", name, bool(ok), values)

    def end(self, reason: str, seconds: float, tail: str = "") -> None:
        """How the part ended. reason: `OK`, or why not. tail: the end of its log."""
        values = {"seconds": round(seconds, 1), **({"tail": tail} if tail else {})}
        self._write("end", reason, reason == OK, values)

    def _write(self, kind: Kind, name: str, ok: bool, values: dict[str, Any]) -> None:
        now = datetime.now().isoformat(timespec="seconds")
        text = json.dumps(asdict(Line(self.part, kind, name, ok, values, now))) + "\n"
        print(text, end="", flush=True)
        fd = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(fd, text.encode())
            os.fsync(fd)
        finally:
            os.close(fd)


def read(file: Path) -> list[Line]:
    """The lines of a file; the last is left out where it was cut off."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(Line(**json.loads(text)))
        except (json.JSONDecodeError, TypeError):
            continue
    return lines


def tables(lines: Sequence[Line]) -> str:
    """Markdown: the machine, the end of each part, the checks that failed, the figures by part."""
    machine = next((line.values for line in lines if line.kind == "machine"), {})
    ends = [line for line in lines if line.kind == "end"]
    checks = [line for line in lines if line.kind == "check"]
    failed = [line for line in checks if not line.ok]
    text = [f"# GPU qualification: {machine.get('card', 'unknown card')}", ""]
    text += [", ".join(f"{_words(name)} {value}" for name, value in machine.items()) + ".", ""]
    text += ["| part | end | s | checks |", "|---|---|---|---|"]
    for line in ends:
        own = [check.ok for check in checks if check.part == line.part]
        share = f"{sum(own)} of {len(own)} hold" if own else ""
        text.append(f"| {line.part} | {line.name} | {line.values['seconds']} | {share} |")
    if failed:
        text += ["", f"**{len(failed)} checks do not hold:**", ""]
        text += [f"- {line.part}: {line.name}: {_pairs(line.values)}" for line in failed]
    for line in ends:
        if not line.ok and line.values.get("tail"):
            text += ["", f"The end of {line.part}'s log:", "", "```", line.values["tail"], "```"]
    for part in dict.fromkeys(line.part for line in lines):
        own = [line for line in lines if line.part == part and line.kind in ("figure", "check")]
        text += _part(part, own)
    return "\n".join(text) + "\n"


def _part(part: str, lines: Sequence[Line]) -> list[str]:
    """Figures of a part: a table for each set of columns."""
    text = ["", f"## {part}"] if lines else []
    columns = dict.fromkeys((line.kind, *line.values) for line in lines)
    for kind, *names in columns:
        own = [line for line in lines if (line.kind, *line.values) == (kind, *names)]
        heads = ["", *map(_words, names), *(["holds"] if kind == "check" else [])]
        text += ["", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for line in own:
            cells = [line.name, *(_short(line.values[name]) for name in names)]
            cells += ["yes" if line.ok else "**no**"] if kind == "check" else []
            text.append(f"| {' | '.join(cells)} |")
    return text


def _words(name: str) -> str:
    return name.replace("_", " ")


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{_words(name)} {_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    """A number with four digits, or text as one line of 300 characters at most."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3e}" if value and not 1e-3 <= abs(value) < 1e6 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value))
    return " ".join(str(value).replace("|", "/").split())[:300]
