"""Outcomes of mutations, the file of results, and the table of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from fuzzing.sandbox import Outcome

MEMORY = 2_000_000_000  # bytes that no command may pass
FAULTS = (
    "unknown error", "traceback", "several lines", "signal", "hang", "memory", "wrote outside",
    "changed an input", "stdout is no JSON", "no message",
)  # fmt: skip


def classify(outcome: Outcome, line: str, changed: bool, outside: list[str]) -> str:
    """'done', 'refused', or one of FAULTS."""
    error = outcome.stderr
    lines = [x for x in error.splitlines() if x.strip()]
    if outcome.code is None:
        return "hang"
    if outcome.peak_bytes > MEMORY:
        return "memory"
    if outcome.code < 0:
        return "signal"
    if changed:
        return "changed an input"
    if outside:
        return "wrote outside"
    if "an error that regraft does not know" in error:
        return "unknown error"
    if "Traceback (most recent call last)" in error + outcome.stdout or outcome.code == 99:
        return "traceback"
    if outcome.code:
        messages = [x for x in lines if x.startswith("regraft: ") and "warning:" not in x[:20]]
        if not messages:
            return "no message"
        return "refused" if lines[-1] == messages[-1] else "several lines"
    if line.endswith("--json"):
        try:
            json.loads(outcome.stdout, parse_constant=_refuse_constant)
        except ValueError:
            return "stdout is no JSON"
    return "done"


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def last_message(error: str) -> str:
    """The message that a command ended with, else the last lines of its stderr."""
    lines = [x for x in error.splitlines() if x.strip()]
    last = [i for i, x in enumerate(lines) if x.startswith("regraft: ") and "warning" not in x[:20]]
    return "\n".join(lines[last[-1] :] if last else lines[-12:])[:2000]


def read_results(path: Path, *, drop_rest: bool = False) -> list[dict[str, Any]]:
    """The results in whole lines; `drop_rest` removes the part of a line that a killed run left."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if drop_rest and whole != data:
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def signature(message: str) -> str:
    """The first line of a message, without names and numbers, to group mutations by."""
    first = re.sub(r"'[^']*'", "'..'", message.splitlines()[0] if message else "")
    return re.sub(r"\d+", "0", first)[:150]


def table(entries: list[dict[str, Any]], environments: list[str]) -> str:
    """The results as a page of Markdown. environments: date, versions and machine of each run."""
    seeds = sorted({entry["seed"] for entry in entries})
    faults = {name: sum(e["outcome"] == name for e in entries) for name in FAULTS}
    commits = Counter(e["commit"] for e in entries)
    lines = [
        "# Damaged inputs",
        "",
        *(line for text in dict.fromkeys(environments) for line in (text, "")),
        f"`python benchmarks/fuzz.py` with --seed {', '.join(map(str, seeds))}: "
        f"{len(entries):,} mutations at "
        + ", ".join(f"{commit} ({count:,})" for commit, count in commits.items())
        + ".",
        "",
        "| counted | mutations |",
        "|---|---:|",
        f"| refused in one sentence | {sum(e['outcome'] == 'refused' for e in entries):,} |",
        f"| done, the damage not noticed or harmless | "
        f"{sum(e['outcome'] == 'done' for e in entries):,} |",
        *(f"| {name} | {count:,} |" for name, count in faults.items()),
        "",
        f"Largest peak memory {max((e['peak_bytes'] for e in entries), default=0) / 1e9:.2f} GB; "
        f"longest command {max((e['seconds'] for e in entries), default=0):.1f} s; "
        f"{sum(e['seconds'] for e in entries) / 60:.0f} minutes in all.",
        "",
        "| command | mutations | refused | done | other |",
        "|---|---:|---:|---:|---:|",
    ]
    by_command: dict[str, Counter[str]] = {}
    for entry in entries:
        counts = by_command.setdefault(entry["command"].removesuffix(" --json"), Counter())
        counts[entry["outcome"]] += 1
    for command, counts in sorted(by_command.items()):
        other = sum(counts[name] for name in FAULTS)
        lines.append(
            f"| `{command}` | {counts.total():,} | {counts['refused']:,} | {counts['done']:,} | "
            f"{other:,} |"
        )
    classes: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry["outcome"] in FAULTS:
            key = entry["outcome"], signature(entry["message"])
            classes.setdefault(key, []).append(f"--seed {entry['seed']} --only {entry['number']}")
    if classes:
        lines += ["", "| what went wrong | mutations | the first |", "|---|---:|---:|"]
        for (outcome, text), numbers in sorted(classes.items(), key=lambda item: -len(item[1])):
            text = text.replace("|", "\\|")
            lines.append(f"| {outcome}: {text} | {len(numbers):,} | `{numbers[0]}` |")
    return "\n".join(lines) + "\n"
