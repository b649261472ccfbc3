"""Fuzz the commands: damage their input files, run them, count unexpected ends.

    python benchmarks/fuzz.py [--count 20000] [--seed 0] [--workers 1] [-o fuzz-out] [--table FILE]

Every mutation takes a command, a file that it reads and a damage to it, all three drawn from the
seed and the mutation's number, and runs the command in a forked child of a process that has done
the imports. Results are appended to OUT/results.jsonl; the same command continues there.
`--workers N` runs N mutations at once; `--also FOLDER` adds the results of another run to the
table (`--count 0` runs nothing more). Counted are: errors that regraft does not know and
tracebacks, messages of several lines, hangs (--limit seconds), deaths by a signal, paths written
outside the output, inputs that changed, and peak memory. Plots are not drawn. `--only NUMBER`
runs one mutation, prints its result and copies its folder to OUT. Exit code 1 where any of these
counts is not zero, or memory is above 2 GB. Needs only regraft's own requirements; mergekit,
datasets and lm_eval are used where they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzzing.report import FAULTS, MEMORY, classify, last_message, read_results, table
from harness import commit, environment

if TYPE_CHECKING:
    from fuzzing.sandbox import Outcome
    from fuzzing.world import Command

_ALLOWED = ("out", ".out.", "tmp", "home", "log-")
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "REGRAFT_CACHE": "", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="mutations at once")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--limit", type=float, default=60, help="seconds of one command")
    parser.add_argument("--only", type=int, help="run this mutation and print its result")
    parser.add_argument("--match", default="", help="only commands that this regex matches")
    parser.add_argument("--commit", help="the commit, where there is no git to ask")
    parser.add_argument("-o", "--out", type=Path, default=Path("fuzz-out"))
    parser.add_argument("--also", type=Path, action="append", default=[], help="other results")
    parser.add_argument("--table", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    for folder in arguments.also:
        if not (folder / "results.jsonl").is_file():
            parser.error(f"{folder} holds no results.jsonl")
    os.environ.update(_ENVIRONMENT)
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    done = {entry["number"] for entry in read_results(results, drop_rest=True)}
    numbers = [number for number in range(arguments.count) if number not in done]
    if numbers or arguments.only is not None:
        versions = environment("transformers", "peft", "tokenizers", "mergekit")
        (out / "environment.txt").write_text(versions + "\n")
        _fuzz(arguments, out, numbers, arguments.commit or commit())
    folders = [out, *arguments.also]
    entries = [entry for folder in folders for entry in read_results(folder / "results.jsonl")]
    files = [folder / "environment.txt" for folder in folders]
    text = table(entries, [file.read_text().strip() for file in files if file.is_file()])
    print(text)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    sys.exit(any(entry["outcome"] in FAULTS for entry in entries))


def _fuzz(arguments: argparse.Namespace, out: Path, numbers: list[int], commit: str) -> None:
    """Run these mutations, or the one of --only, in a temporary folder, in memory if possible."""
    fast = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="regraft-fuzz-", dir=fast if fast.is_dir() else None
    ) as scratch:
        commands = prepare(Path(scratch), arguments.match)
        fuzzer = Fuzzer(Path(scratch), commands, arguments.seed, arguments.limit, commit)
        if arguments.only is not None:
            folder = fuzzer.use_folder("only")
            result = fuzzer.run(arguments.only)
            print(json.dumps(result, indent=1, ensure_ascii=False))
            shutil.copytree(
                folder, out / str(arguments.only), symlinks=True, dirs_exist_ok=True,
                ignore=lambda folder, names: [n for n in names if not _is_plain(folder, n)],
            )  # fmt: skip
            sys.exit()
        end = time.monotonic() + (arguments.seconds or float("inf"))
        run_all(fuzzer, numbers, out / "results.jsonl", arguments.workers, end)


def prepare(scratch: Path, match: str) -> list[Command]:
    """Write the inputs, run every command on them undamaged, and import what the commands import.

    Returns the commands that the regular expression matches.
    """
    from fuzzing import sandbox, world

    whole, cache, folder = scratch / "whole" / "in", scratch / "cache", scratch / "first"
    whole.parent.mkdir()
    with contextlib.chdir(whole.parent):  # so that no record holds an absolute path
        world.build(Path(whole.name))
    cache.mkdir()
    sandbox.prepare_imports()
    commands = [command for command in world.COMMANDS if re.search(match, command.line)]
    for command in commands:
        sandbox.fresh_folder(folder, whole, cache)
        outcome = _run_command(command.line, folder, 600.0, note_modules=True)
        if outcome.code != 0:
            raise SystemExit(f"`{command.line}` fails on undamaged inputs: {outcome.stderr}")
        sandbox.import_modules(folder)
        roles = folder / "home" / "cache" / "roles"
        if roles.is_dir():
            shutil.copytree(roles, cache / "roles", dirs_exist_ok=True)
    sandbox.freeze()
    return commands


def run_all(
    fuzzer: Fuzzer, numbers: Sequence[int], results: Path, workers: int, end: float
) -> None:
    """Run the mutations in forked workers until the time `end`; each appends its results."""
    children = []
    for worker in range(workers):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                fuzzer.use_folder(str(worker))
                _work(fuzzer, numbers[worker::workers], results, end)
                code = 0
            except Exception:  # the parent sees the exit code and fails
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    if failed:
        raise SystemExit(f"{len(failed)} of {workers} workers failed")


def _work(fuzzer: Fuzzer, numbers: Sequence[int], results: Path, end: float) -> None:
    file = os.open(results, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for number in numbers:
        if time.monotonic() > end:
            break
        result = fuzzer.run(number)
        os.write(file, (json.dumps(result) + "\n").encode())
        if result["outcome"] in FAULTS:
            fields = [str(result[key]) for key in ("outcome", "command", "file", "damage")]
            print(number, *fields, result["message"][:300], sep=": ", flush=True)


@dataclass
class Fuzzer:
    """Runs mutations. scratch: the folder that `prepare` has filled. limit: seconds of a command.
    folder: where the commands run."""

    scratch: Path
    commands: list[Command]
    seed: int
    limit: float
    commit: str
    folder: Path = Path()

    def use_folder(self, name: str) -> Path:
        """Run in a folder of this name, with its own copy of the inputs."""
        self.folder = self.scratch / name / "run"
        self._copy_inputs()
        return self.folder

    def run(self, number: int) -> dict[str, Any]:
        """The result of one mutation, as a line of the results file."""
        from fuzzing import mutations, sandbox

        rng = random.Random(f"{self.seed} {number}")
        command = rng.choices(self.commands, [c.weight for c in self.commands])[0]
        sandbox.fresh_folder(self.folder, self.folder.parent / "in", self.scratch / "cache")
        patterns = [p for p in command.reads if any((self.folder / "in").glob(p))]
        chosen = rng.choice(sorted((self.folder / "in").glob(rng.choice(patterns))))
        damage = mutations.mutate(chosen, rng)
        before = sandbox.listing(self.folder / "in")
        line = command.line + (" --json" if rng.random() < 0.3 else "")
        outcome = _run_command(line, self.folder, self.limit)
        changed = sandbox.listing(self.folder / "in") != before
        strays = [
            name for name in os.listdir(self.folder) if not name.startswith(("in", *_ALLOWED))
        ]
        if changed:
            shutil.rmtree(self.folder.parent / "in")
            self._copy_inputs()
        return {
            "number": number,
            "seed": self.seed,
            "commit": self.commit,
            "command": line,
            "file": str(chosen.relative_to(self.folder / "in")),
            "damage": damage.encode("utf-8", "replace").decode(),
            "outcome": classify(outcome, line, changed, outcome.outside + strays),
            "code": outcome.code,
            "message": "\n".join((outcome.outside + strays)[:5]) or last_message(outcome.stderr),
            "seconds": round(outcome.seconds, 3),
            "peak_bytes": outcome.peak_bytes,
        }

    def _copy_inputs(self) -> None:
        shutil.copytree(self.scratch / "whole" / "in", self.folder.parent / "in")


def _run_command(line: str, folder: Path, limit: float, note_modules: bool = False) -> Outcome:
    from fuzzing import sandbox

    return sandbox.run(
        shlex.split(line), folder, allowed=_ALLOWED, limit=limit, memory=2 * MEMORY,
        note_modules=note_modules,
    )  # fmt: skip


def _is_plain(folder: str, name: str) -> bool:
    path = Path(folder, name)
    return path.is_symlink() or path.is_dir() or path.is_file()


if __name__ == "__main__":
    main()
