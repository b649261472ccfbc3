"""Damage what the commands read, run them on it, and count what does not end in a sentence.

    python benchmarks/fuzz.py [--count 20000] [--seed 0] [-o fuzz-out] [--table FILE]

Every mutation takes a command, a file that it reads and a damage to it, all three drawn from the
seed and the mutation's number, and runs the command in a forked child of a process that has done
the imports. Results are appended to OUT/results.jsonl; the same line continues where it stopped.
Two processes with two seeds and folders use two cores; `--also FOLDER` adds the other's results to
the table. Counted are: errors that regraft does not know and tracebacks, messages of several lines,
hangs (--limit seconds), deaths by a signal, paths written outside the output, inputs that changed,
and peak memory. Figures are not drawn. `--only NUMBER` runs one mutation, shows it and leaves its
folder. Exit code 1 where any of these is not zero, or memory is above 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

MEMORY = 2_000_000_000
_ALLOWED = ("out", ".out.", "tmp", "home", "log-")
_BAD = (
    "unknown error", "traceback", "several lines", "signal", "hang", "memory", "wrote outside",
    "changed an input", "stdout is no JSON", "no message",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--limit", type=float, default=60, help="seconds of one command")
    parser.add_argument("--only", type=int, help="run this mutation and show what it prints")
    parser.add_argument("--match", default="", help="only commands that this regex matches")
    parser.add_argument("-o", "--out", type=Path, default=Path("fuzz-out"))
    parser.add_argument("--also", type=Path, action="append", default=[], help="other results")
    parser.add_argument("--table", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    os.environ["REGRAFT_CACHE"] = ""
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    done = len(_read(results))
    fast = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="regraft-fuzz-", dir=fast if fast.is_dir() else None
    ) as spot:
        fuzzer = Fuzzer(Path(spot), arguments.seed, arguments.limit, arguments.match)
        if arguments.only is not None:
            result = fuzzer.run(arguments.only)
            print(json.dumps(result, indent=1, ensure_ascii=False))
            shutil.copytree(
                fuzzer.folder, out / str(arguments.only), symlinks=True, dirs_exist_ok=True,
                ignore=lambda folder, names: [n for n in names if not _is_plain(folder, n)],
            )  # fmt: skip
            sys.exit()
        start = time.monotonic()
        with results.open("a", encoding="utf-8") as file:
            for number in range(done, arguments.count):
                if arguments.seconds and time.monotonic() - start > arguments.seconds:
                    break
                result = fuzzer.run(number)
                file.write(json.dumps(result) + "\n")
                file.flush()
                if result["outcome"] in _BAD:
                    shown = [str(result[key]) for key in ("outcome", "command", "file", "damage")]
                    print(number, *shown, result["message"][:300], sep=": ", flush=True)
    for folder in arguments.also:
        if not (folder / "results.jsonl").is_file():
            parser.error(f"{folder} holds no results.jsonl")
    entries = [e for path in (out, *arguments.also) for e in _read(path / "results.jsonl")]
    text = table(entries)
    print(text)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    sys.exit(any(entry["outcome"] in _BAD for entry in entries))


class Fuzzer:
    """Runs mutation after mutation. folder: where the latest one ran."""

    def __init__(self, spot: Path, seed: int, limit: float, match: str) -> None:
        from fuzzing import sandbox, world

        sandbox.import_everything()
        self.seed, self.limit = seed, limit
        self.inputs, self.cache, self.folder = spot / "inputs", spot / "cache", spot / "run"
        self.commands = [c for c in world.COMMANDS if re.search(match, c.line)]
        self.commit = _commit()
        world.build(self.inputs)
        self.cache.mkdir()
        for command in self.commands:  # every command works on what is whole, and fills the cache
            sandbox.fresh_folder(self.folder, self.inputs, self.cache)
            outcome = self._command(command.line)
            if outcome.code != 0:
                raise SystemExit(f"`{command.line}` fails on whole inputs: {outcome.stderr}")
            roles = self.folder / "home" / "cache" / "roles"
            if roles.is_dir():
                shutil.copytree(roles, self.cache / "roles", dirs_exist_ok=True)

    def run(self, number: int) -> dict[str, Any]:
        """The result of one mutation, as a line of the results file."""
        from fuzzing import mutations, sandbox

        rng = random.Random(f"{self.seed} {number}")
        command = rng.choices(self.commands, [c.weight for c in self.commands])[0]
        sandbox.fresh_folder(self.folder, self.inputs, self.cache)
        patterns = [p for p in command.reads if any((self.folder / "in").glob(p))]
        chosen = rng.choice(sorted((self.folder / "in").glob(rng.choice(patterns))))
        damage = mutations.mutate(chosen, rng)
        before = sandbox.listing(self.folder / "in")
        line = command.line + (" --json" if rng.random() < 0.3 else "")
        outcome = self._command(line)
        changed = sandbox.listing(self.folder / "in") != before
        strays = [
            name for name in os.listdir(self.folder) if not name.startswith(("in", *_ALLOWED))
        ]
        message = _message(outcome.stderr)
        if changed:
            self._rebuild()
        return {
            "number": number,
            "seed": self.seed,
            "commit": self.commit,
            "command": line,
            "file": str(chosen.relative_to(self.folder / "in")),
            "damage": damage.encode("utf-8", "replace").decode(),
            "outcome": _classify(outcome, line, changed, outcome.outside + strays),
            "code": outcome.code,
            "message": "\n".join((outcome.outside + strays)[:5]) or message,
            "seconds": round(outcome.seconds, 3),
            "peak_bytes": outcome.peak_bytes,
        }

    def _command(self, line: str) -> Any:
        from fuzzing import sandbox

        return sandbox.run(
            shlex.split(line), self.folder, allowed=_ALLOWED, limit=self.limit, memory=2 * MEMORY
        )

    def _rebuild(self) -> None:
        from fuzzing import world

        shutil.rmtree(self.inputs)
        world.build(self.inputs)


def _classify(outcome: Any, line: str, changed: bool, outside: list[str]) -> str:
    error = outcome.stderr
    said = [x for x in error.splitlines() if x.strip()]
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
        last = [x for x in said if x.startswith("regraft: ") and "warning:" not in x[:20]]
        if not last:
            return "no message"
        return "refused" if said[-1] == last[-1] else "several lines"
    if line.endswith("--json"):
        try:
            json.loads(outcome.stdout, parse_constant=_refuse_constant)
        except ValueError:
            return "stdout is no JSON"
    return "done"


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _message(error: str) -> str:
    lines = [x for x in error.splitlines() if x.strip()]
    last = [i for i, x in enumerate(lines) if x.startswith("regraft: ") and "warning" not in x[:20]]
    return "\n".join(lines[last[-1] :] if last else lines[-12:])[:2000]


def _read(results: Path) -> list[dict[str, Any]]:
    if not results.is_file():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def _commit() -> str:
    here = Path(__file__).parent
    try:
        return subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True,
            check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _is_plain(folder: str, name: str) -> bool:
    path = Path(folder, name)
    return path.is_symlink() or path.is_dir() or path.is_file()


def signature(message: str) -> str:
    """A message without what differs between two mutations of one class."""
    first = re.sub(r"'[^']*'", "'..'", message.splitlines()[0] if message else "")
    return re.sub(r"\d+", "0", first)[:150]


def table(entries: list[dict[str, Any]]) -> str:
    """The results as a page of Markdown."""
    from llama8b import environment

    seeds = sorted({entry["seed"] for entry in entries})
    bad = {name: sum(e["outcome"] == name for e in entries) for name in _BAD}
    commits = Counter(e["commit"] for e in entries)
    lines = [
        "# Damaged inputs",
        "",
        environment("transformers", "peft", "tokenizers", "mergekit"),
        "",
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
        *(f"| {name} | {count:,} |" for name, count in bad.items()),
        "",
        f"Largest peak memory {max((e['peak_bytes'] for e in entries), default=0) / 1e9:.2f} GB; "
        f"longest command {max((e['seconds'] for e in entries), default=0):.1f} s; "
        f"{sum(e['seconds'] for e in entries) / 60:.0f} minutes in all.",
        "",
        "| command | mutations | refused | done | other |",
        "|---|---:|---:|---:|---:|",
    ]
    by: dict[str, Counter[str]] = {}
    for entry in entries:
        by.setdefault(entry["command"].removesuffix(" --json"), Counter())[entry["outcome"]] += 1
    for command, counts in sorted(by.items()):
        other = sum(counts[name] for name in _BAD)
        lines.append(
            f"| `{command}` | {counts.total():,} | {counts['refused']:,} | {counts['done']:,} | "
            f"{other:,} |"
        )
    classes: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry["outcome"] in _BAD:
            key = entry["outcome"], signature(entry["message"])
            classes.setdefault(key, []).append(f"--seed {entry['seed']} --only {entry['number']}")
    if classes:
        lines += ["", "| what went wrong | mutations | the first |", "|---|---:|---:|"]
        for (outcome, text), numbers in sorted(classes.items(), key=lambda item: -len(item[1])):
            text = text.replace("|", "\\|")
            lines.append(f"| {outcome}: {text} | {len(numbers):,} | `{numbers[0]}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
