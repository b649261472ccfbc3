"""Inject faults into every command that writes a folder, resume it, and compare every byte.

    python benchmarks/faults.py [--faults 200] [--seconds S] [--seed 0] [-o faults-out]

Commands on small models: extract-lora, apply, merge, merge --as-adapter, train, evaluate, demo.
Faults: kill -9, SIGINT, SIGTERM, a full disk (ENOSPC), an I/O error (EIO), a read-only disk
(EROFS), a file that may not grow (EFBIG, refused by the system itself, so that libraries in C and
Rust meet it too), standard output full or closed, and two writers at once. The moment is random:
before one of the calls that change the disk. Half of the runs replace an earlier output.

After each fault: inputs are unchanged; the target is as before, or new and whole; the exit code is
the fault's and stderr one line at most; then the run resumes, and its bytes equal those of an
undisturbed one (of training and the demo all but logs and curves, which hold times). Results go to
OUT/faults.jsonl as they come; the same command continues there. Exit code 1 where a check fails.
"""

from __future__ import annotations

import argparse
import errno
import json
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import models
from evaluated import toy
from forked import Children
from llama8b import commit
from warm import WarmProcess

from regraft.checkpoint.write.manifest import MANIFEST, write_manifest

SIGNALS = {"kill -9": signal.SIGKILL, "SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
ERRORS = {
    "full disk": errno.ENOSPC,
    "I/O error": errno.EIO,
    "read-only disk": errno.EROFS,
}
STDOUT = {"full stdout": "/dev/full", "closed stdout": ""}
KINDS = (*SIGNALS, *ERRORS, "file cannot grow", *STDOUT, "two writers")
COMMANDS = ("extract-lora", "apply", "merge", "merge --as-adapter", "train", "evaluate", "demo")
TIMED = ("metrics.jsonl", "watch.jsonl", "curves.png", "README.md", "train.json", MANIFEST)

MERGE = """\
merge_method: ties
base_model: {0}/base
models:
  - {{model: {0}/extended, parameters: {{weight: 0.6, density: 0.5}}}}
  - {{model: {0}/derivative, parameters: {{weight: 0.4, density: 0.7}}}}
context: {{from: {0}/extended}}
"""
MERGE_ADAPTERS = """\
merge_method: task_arithmetic
base_model: {0}/base
models:
  - {{model: {0}/adapter, parameters: {{weight: 0.6}}}}
  - {{model: {0}/adapter-2, parameters: {{weight: 0.4}}}}
context: {{from: {0}/adapter}}
"""
TRAINING = """\
model: {0}/toy
stages: [{{length: 64, steps: 3, batch: 1, rate: 1e-3}}]
data:
  cache: {0}/cache
  sources: [{{name: a, synthetic: notes, words: 64, documents: 9, rows: packed}}]
save_every: 1
"""


@dataclass
class Fault:
    """One injected fault and its result. share: the command's progress at the fault, 0 to 1."""

    number: int
    command: str
    kind: str
    share: float
    overwrite: bool
    commit: str = ""
    code: int = 0
    message: str = ""
    problems: tuple[str, ...] = ()


class Bench:
    """The inputs, an undisturbed output of every command, and the processes that run them."""

    def __init__(self, folder: Path, commands: tuple[str, ...], children: Children) -> None:
        self.inputs, self.folder, self.children = folder / "inputs", folder / "run", children
        shutil.rmtree(self.inputs, ignore_errors=True)
        models.family(self.inputs)
        toy(self.inputs / "toy")
        (self.inputs / "models.yaml").write_text(MERGE.format(self.inputs))
        (self.inputs / "adapters.yaml").write_text(MERGE_ADAPTERS.format(self.inputs))
        (self.inputs / "train.yaml").write_text(TRAINING.format(self.inputs))
        for name, seed in (("adapter", "0"), ("adapter-2", "1")):
            line = self.line("extract-lora", self.inputs / name)
            assert children.run(*line, "--seed", seed)["code"] == 0
        self.whole: dict[str, dict[str, bytes]] = {}
        self.calls: dict[str, int] = {}
        for command in commands:
            done = children.run(*self.line(command, self._fresh()))
            assert done["code"] == 0, (command, done["err"])
            self.whole[command] = self.contents(command, self.target)
            self.calls[command] = done["calls"]
        self.before = models.contents(self.inputs)

    @property
    def target(self) -> Path:
        return self.folder / "out"

    def line(self, command: str, out: Path) -> list[str]:
        """The command line that writes `out`."""
        at = self.inputs
        words = {
            "extract-lora": ["extract-lora", at / "base", at / "extended", "--rank", 4],
            "apply": ["apply", at / "adapter", at / "derivative", "--verify"],
            "merge": ["merge", at / "models.yaml"],
            "merge --as-adapter": ["merge", at / "adapters.yaml", "--as-adapter"],
            "train": ["train", at / "train.yaml", "--threads", 1, "--device", "cpu"],
            "evaluate": ["evaluate", f"m={at / 'toy'}", "--suite", "toy,perplexity", "--haystack",
                         "world", "--lengths", 64, "--items", 2, "--texts", 1],
            "demo": ["demo"],
        }[command]  # fmt: skip
        return [str(word) for word in (*words, "-q", "-o", out)]

    def inject(self, fault: Fault) -> Fault:
        """Run the command with its fault, check, resume, check; returns the fault with results."""
        line = self.line(fault.command, self._fresh())
        if fault.overwrite:
            self.target.mkdir()
            (self.target / "old.txt").write_text("an earlier output")
            write_manifest(self.target)
            line.append("--overwrite")
        old = models.contents(self.target) if fault.overwrite else None
        done = self._run(line, fault)
        problems = [*self._wrong_exit(fault, done), *self._wrong_target(fault, old)]
        if not (self.target.is_dir() and self._same(fault.command)):
            again = [*line, "--resume"] if fault.command != "demo" else line
            resumed = self.children.run(*again)
            if resumed["code"]:
                problems.append(f"not resumed: {resumed['code']} {resumed['err'].strip()}")
        if not problems:
            problems += self._different(fault.command)
        if models.contents(self.inputs) != self.before:
            problems.append("an input has changed")
        fault.code, fault.problems = done["code"], tuple(problems)
        lines = done["err"].strip().replace(str(self.folder), "").splitlines()
        fault.message = lines[-1] if lines else ""
        return fault

    def contents(self, command: str, folder: Path) -> dict[str, bytes]:
        """The files to compare; a log's lines without their times."""
        files = models.contents(folder)
        if command not in ("train", "demo"):
            return files
        return {
            name: data
            for name, data in files.items()
            if Path(name).name not in TIMED and "tensorboard" not in Path(name).parts
        }

    def _run(self, line: list[str], fault: Fault) -> dict[str, Any]:
        at = self._moment(fault)
        if fault.kind in SIGNALS:
            return self.children.run(*line, die=at, with_signal=SIGNALS[fault.kind])
        if fault.kind in ERRORS:
            return self.children.run(*line, fail=at, error=ERRORS[fault.kind])
        if fault.kind in STDOUT:
            return self.children.run(*line, stdout=STDOUT[fault.kind])
        if fault.kind == "file cannot grow":
            largest = max(len(data) for data in self.whole[fault.command].values())
            return self.children.run(*line, largest=int(fault.share * largest))
        return self._two_writers(line, at)

    def _moment(self, fault: Fault) -> int:
        """The number of the call before which the fault is injected."""
        return 1 + int(fault.share * self.calls[fault.command])

    def _two_writers(self, line: list[str], at: int) -> dict[str, Any]:
        """Stop the first before call `at`, let a second try, then let the first go on."""
        gate = self.folder / "gate"
        first: dict[str, Any] = {}

        def run_first() -> None:
            with WarmProcess() as warm:
                first.update(Children(warm).run(*line, gate=(at, gate)))

        thread = threading.Thread(target=run_first)
        thread.start()
        while thread.is_alive() and not Path(f"{gate}.reached").exists():
            time.sleep(0.01)
        second = self.children.run(*line)
        gate.touch()
        thread.join()
        for path in (gate, Path(f"{gate}.reached")):
            path.unlink(missing_ok=True)
        if "Another regraft process" in second["err"] and first["code"] == 0:
            return second
        # Without the lock: one of them is first, and the other is refused or replaces its output.
        refused = [one for one in (first, second) if one["code"]]
        return {**(refused[0] if refused else first), "one_done": len(refused) < 2}

    def _wrong_exit(self, fault: Fault, done: dict[str, Any]) -> list[str]:
        problems, code = [], done["code"]
        if fault.kind == "kill -9":
            allowed = {-9}
        elif fault.kind in SIGNALS:
            allowed = {128 + SIGNALS[fault.kind]}
        elif fault.kind in STDOUT:
            allowed = {1}
        elif fault.kind == "two writers":
            allowed = {2} if done.get("one_done", True) else set()
            allowed |= {0} if "one_done" in done else set()
        else:
            allowed = {0, 1, 2}  # 0: the command does not need the call, such as a cache's
        if fault.kind in SIGNALS and code == 0 and done["calls"] < self._moment(fault):
            allowed = {0}  # it had fewer calls than the undisturbed run, and none was drawn
        if code not in allowed:
            problems.append(f"exit code {code}: {done['err'].strip()[-300:]}")
        warnings = ("warning:", "regraft: warning:")
        errors = [text for text in done["err"].splitlines() if not text.startswith(warnings)]
        if len(errors) > 1 or any(word in done["err"] for word in ("Traceback", "does not know")):
            problems.append(f"not one line: {done['err'].strip()[-300:]}")
        if code not in (0, -9) and not errors:
            problems.append("no message")
        return problems

    def _wrong_target(self, fault: Fault, old: dict[str, bytes] | None) -> list[str]:
        """The target must be the old output, absent, or the new one."""
        if not self.target.exists():
            moved = self.folder / ".out.regraft-replaced"
            if old is not None and not (moved.is_dir() and models.contents(moved) == old):
                return ["the earlier output is lost"]
            return []
        files = models.contents(self.target)
        files.pop(".regraft-journal.jsonl", None)
        if files == old or self._same(fault.command):
            return []
        return ["the target is neither the old output nor the new one"]

    def _same(self, command: str) -> bool:
        files = self.contents(command, self.target)
        files.pop(".regraft-journal.jsonl", None)
        return files == self.whole[command]

    def _different(self, command: str) -> list[str]:
        problems: list[str] = []
        if not self._same(command):
            files, whole = self.contents(command, self.target), self.whole[command]
            names = {name for name in files.keys() | whole.keys()
                     if files.get(name) != whole.get(name)}  # fmt: skip
            problems.append(f"other bytes after resuming: {sorted(names)[:3]}")
        left = {path.name for path in self.folder.iterdir()} - {"out"}
        if left and not left <= {".out.regraft-replaced"}:
            problems.append(f"left behind: {sorted(left)}")
        return problems

    def _fresh(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self.target


def draw(number: int, seed: int, commands: tuple[str, ...]) -> Fault:
    """Fault `number`: kinds and commands in turn, each at a random moment."""
    dice = random.Random(f"{seed} {number}")
    command = commands[number % len(commands)]
    kind = KINDS[(number // len(commands)) % len(KINDS)]
    return Fault(number, command, kind, dice.random(), dice.random() < 0.5, commit())


def table(faults: list[Fault], arguments: argparse.Namespace) -> str:
    """The results as a page: a row a command, a column a kind, failed of injected."""
    import platform

    from regraft.records import versions

    injected = Counter((fault.command, fault.kind) for fault in faults)
    failed = Counter((fault.command, fault.kind) for fault in faults if fault.problems)
    rows = [
        f"| {command} | "
        + " | ".join(f"{failed[command, kind]} of {injected[command, kind]}" for kind in KINDS)
        + " |"
        for command in COMMANDS
        if any(fault.command == command for fault in faults)
    ]
    commits = Counter(fault.commit for fault in faults)
    at = ", ".join(f"{name} ({count})" for name, count in commits.items())
    bad = sum(bool(fault.problems) for fault in faults)
    resumed = sum(fault.code != 0 and fault.kind not in STDOUT for fault in faults)
    return "\n".join(
        [
            "# Faults",
            "",
            f"{len(faults)} faults were injected, {bad} of them failed a check. {resumed} runs "
            "ended before they were done and were run to their end.",
            "",
            "| failed of injected | " + " | ".join(KINDS) + " |",
            "|---|" + "---|" * len(KINDS),
            *rows,
            "",
            "Checked: inputs unchanged; the target old or new, never half; the exit code; one line "
            "on stderr; the bytes after resuming equal those of an undisturbed run (training and "
            "demo: all but logs, curves, cards and records, which hold times).",
            "",
            f"`python benchmarks/faults.py --faults {len(faults)} --seed {arguments.seed}` "
            f"at {at}, {time.strftime('%Y-%m-%d')}, {platform.machine()}, "
            + ", ".join(f"{name} {version}" for name, version in versions().items())
            + ".",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=None, help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("-o", "--out", type=Path, default=Path("faults-out"))
    parser.add_argument(
        "--page", type=Path, default=None, help="such as benchmarks/results/faults.md"
    )
    arguments = parser.parse_args()
    commands = tuple(arguments.commands.split(","))
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    log = out / "faults.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    faults = [Fault(**json.loads(line)) for line in lines]
    with WarmProcess() as warm, log.open("a") as file:
        bench = Bench(out, commands, Children(warm))
        began = time.monotonic()
        for number in range(len(faults), arguments.faults):
            if arguments.seconds is not None and time.monotonic() - began > arguments.seconds:
                break
            fault = bench.inject(draw(number, arguments.seed, commands))
            faults.append(fault)
            file.write(json.dumps(asdict(fault)) + "\n")
            file.flush()
            state = "; ".join(fault.problems) or "right"
            print(
                f"{number} {fault.command}, {fault.kind} at {fault.share:.0%}: {state}", flush=True
            )
    page = table(faults, arguments)
    print(page)
    if arguments.page is not None:
        arguments.page.write_text(page)
    sys.exit(any(fault.problems for fault in faults))


if __name__ == "__main__":
    main()
