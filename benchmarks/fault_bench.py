"""One fault of `faults.py`: its injection into a command, and the checks of what is left."""

from __future__ import annotations

import errno
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
from fault_commands import (
    Inputs,
    broken_stages,
    comparable_files,
    line_to_continue,
    output_files,
)
from forked import Children
from warm import WarmProcess

SIGNALS = {"kill -9": signal.SIGKILL, "SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
ERRORS = {
    "full disk": errno.ENOSPC,
    "I/O error": errno.EIO,
    "read-only disk": errno.EROFS,
}
STDOUT = {"full stdout": "/dev/full", "closed stdout": ""}
KINDS = (*SIGNALS, *ERRORS, "file cannot grow", *STDOUT, "two writers")


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
        self.folder, self.children = folder / "run", children
        self.inputs = Inputs(folder / "inputs", children)
        self.whole: dict[str, dict[str, bytes]] = {}
        self.calls: dict[tuple[str, bool], int] = {}
        for command in commands:
            for overwrite in (False, True):
                line = self.inputs.line(command, self._fresh())
                if overwrite:
                    line.append(self.inputs.write_earlier_output(command, self.target))
                done = children.run(*line)
                assert done["code"] == 0, (command, done["err"])
                self.calls[command, overwrite] = done["calls"]
                whole = comparable_files(command, self.target)
                assert self.whole.setdefault(command, whole) == whole, command
        self.before = models.contents(self.inputs.folder)

    @property
    def target(self) -> Path:
        return self.folder / "out"

    def inject(self, fault: Fault) -> Fault:
        """Run the command with its fault, check, resume, check; returns the fault with results."""
        line = self.inputs.line(fault.command, self._fresh())
        old = None
        if fault.overwrite:
            line.append(self.inputs.write_earlier_output(fault.command, self.target))
            old = output_files(self.target)
        done = self._run(line, fault)
        problems = [*self._wrong_exit(fault, done), *self._wrong_target(fault, old)]
        if not self._same(fault.command):
            resumed = self.children.run(*line_to_continue(fault.command, line))
            if resumed["code"]:
                problems.append(f"not resumed: {resumed['code']} {resumed['err'].strip()}")
        if not problems:
            problems += self._different(fault.command)
        if models.contents(self.inputs.folder) != self.before:
            problems.append("an input has changed")
        fault.code, fault.problems = done["code"], tuple(problems)
        lines = done["err"].strip().replace(str(self.folder), "").splitlines()
        fault.message = lines[-1] if lines else ""
        return fault

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
        return 1 + int(fault.share * self.calls[fault.command, fault.overwrite])

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
        """The target must be the old output, absent, or the new one; of a graft, every stage."""
        if fault.command == "graft":
            return [f"{name} is not whole" for name in broken_stages(self.target)]
        if not self.target.exists():
            moved = self.folder / ".out.regraft-replaced"
            if old is not None and not (moved.exists() and output_files(moved) == old):
                return ["the earlier output is lost"]
            return []
        files = output_files(self.target)
        files.pop(".regraft-journal.jsonl", None)
        if files == old or self._same(fault.command):
            return []
        return ["the target is neither the old output nor the new one"]

    def _same(self, command: str) -> bool:
        files = comparable_files(command, self.target)
        files.pop(".regraft-journal.jsonl", None)
        return files == self.whole[command]

    def _different(self, command: str) -> list[str]:
        problems: list[str] = []
        if not self._same(command):
            files, whole = comparable_files(command, self.target), self.whole[command]
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
