"""What the benchmarks share: measuring a process, the line on the machine, writing a table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass
class Child:
    """Wall and CPU seconds and peak resident bytes of one command."""

    wall: float
    cpu: float
    peak: int


def run(command: list[str], **env: str) -> Child:
    """Run a command in a process of its own and measure it. Raises with its output if it fails."""
    wrapper = (
        "import resource,subprocess,sys,json,time;t=time.time();"
        "r=subprocess.run(sys.argv[1:],capture_output=True,text=True);"
        "u=resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(json.dumps([r.returncode,time.time()-t,u.ru_utime+u.ru_stime,u.ru_maxrss*1024,"
        "(r.stdout+r.stderr)[-3000:]]))"
    )
    text = subprocess.run(
        [sys.executable, "-c", wrapper, *command],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    code, wall, cpu, peak, output = json.loads(text)
    if code:
        raise RuntimeError(f"{' '.join(command)} failed with {code}:\n{output}")
    return Child(wall, cpu, peak)


def best(measure: Callable[[], Child], times: int = 3) -> Child:
    """The quickest of several runs: what else the machine does only ever adds."""
    return min((measure() for _ in range(times)), key=lambda child: child.wall)


def warm(*folders: Path) -> None:
    """Read the files once, so that all contenders find them in the page cache."""
    for folder in folders:
        for path in folder.iterdir():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def script(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).with_name(name))


def print_each(lines: Iterable[str]) -> list[str]:
    """Print each line as soon as it is there; returns all of them."""
    printed = []
    for line in lines:
        printed.append(line)
        print(line, flush=True)
    return printed


def environment(*packages: str) -> str:
    """One line on date, software and machine for the tables."""
    versions = ", ".join(f"{p} {_version(p)}" for p in ("torch", *packages))
    model = platform.processor() or platform.machine()
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ()
    ):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{date.today()}, {versions}, {os.cpu_count()} cores of {model}, {memory:.0f} GB"


def commit() -> str:
    """The commit of this repository, '-dirty' where files are changed; 'unknown' without git."""
    here = Path(__file__).parent
    try:
        return subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True,
            check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def add_quick(parser: argparse.ArgumentParser) -> None:
    """The switch of every benchmark that only shows that it runs."""
    parser.add_argument(
        "--quick", action="store_true",
        help="toy sizes, in seconds, to see that the benchmark runs; no table is written",
    )  # fmt: skip


def record(name: str, text: str, *, keep: bool = True) -> None:
    """Print a result and, with `keep`, write it to benchmarks/results/."""
    print(text)
    if not keep:
        return
    path = Path(__file__).parent / "results" / f"{name}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
