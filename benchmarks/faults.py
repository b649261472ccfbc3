"""Inject faults into every command that writes an output, resume it, and compare every byte.

    python benchmarks/faults.py [--faults 200] [--commands graft,export] [--kinds "kill -9"]
                                [--seconds S] [--seed 0] [-o faults-out]

Commands on small models (`fault_commands.py`): extract-lora, apply, merge, merge --as-adapter,
train, evaluate, demo, graft, export. Faults (`fault_bench.py`): kill -9, SIGINT, SIGTERM, a full
disk (ENOSPC), an I/O error (EIO), a read-only disk (EROFS), a file that may not grow (EFBIG,
refused by the system itself, so that libraries in C and Rust meet it too), standard output full or
closed, and two writers at once. The moment is random: before one of the calls that change the disk.
Half of the runs replace an earlier output; a graft's is a job by another recipe.

After each fault: inputs are unchanged; the target is as before, or new and whole (of a graft: every
stage); the exit code is the fault's and stderr one line at most; then the run resumes, and its
bytes equal those of an undisturbed one (of training and the demo all but logs and curves, which
hold times). Results go to OUT/faults.jsonl as they come; the same command continues there. Exit
code 1 where a check fails.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from fault_bench import KINDS, STDOUT, Bench, Fault
from fault_commands import COMMANDS
from forked import Children
from harness import commit
from warm import WarmProcess


def draw(number: int, seed: int, commands: tuple[str, ...], kinds: tuple[str, ...]) -> Fault:
    """Fault `number`: kinds and commands in turn, each at a random moment."""
    rng = random.Random(f"{seed} {number}")
    command = commands[number % len(commands)]
    kind = kinds[(number // len(commands)) % len(kinds)]
    return Fault(number, command, kind, rng.random(), rng.random() < 0.5, commit())


def table(faults: list[Fault], arguments: argparse.Namespace) -> str:
    """The results as a page: a row a command, a column a kind, failed of injected."""
    import platform

    from regraft.records import versions

    injected = Counter((fault.command, fault.kind) for fault in faults)
    failed = Counter((fault.command, fault.kind) for fault in faults if fault.problems)
    kinds = [kind for kind in KINDS if any(fault.kind == kind for fault in faults)]
    rows = [
        f"| {command} | "
        + " | ".join(f"{failed[command, kind]} of {injected[command, kind]}" for kind in kinds)
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
            f"{len(faults)} faults were injected, {bad} of them failed a check. {resumed} runs "
            "ended before they were done and were run to their end.",
            "",
            "| failed of injected | " + " | ".join(kinds) + " |",
            "|---|" + "---|" * len(kinds),
            *rows,
            "",
            f"`python benchmarks/faults.py {_chosen(arguments)}--faults {len(faults)} "
            f"--seed {arguments.seed}` "
            f"at {at}, {time.strftime('%Y-%m-%d')}, {platform.machine()}, "
            + ", ".join(f"{name} {version}" for name, version in versions().items())
            + ".",
            "",
        ]
    )


def _chosen(arguments: argparse.Namespace) -> str:
    """The options that choose commands and kinds."""
    commands = (
        "" if arguments.commands == ",".join(COMMANDS) else f"--commands {arguments.commands} "
    )
    kinds = "" if arguments.kinds == ",".join(KINDS) else f'--kinds "{arguments.kinds}" '
    return commands + kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=None, help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("-o", "--out", type=Path, default=Path("faults-out"))
    parser.add_argument(
        "--page", type=Path, help="add the table to this file: benchmarks/results/faults.md"
    )
    arguments = parser.parse_args()
    commands, kinds = tuple(arguments.commands.split(",")), tuple(arguments.kinds.split(","))
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
            fault = bench.inject(draw(number, arguments.seed, commands, kinds))
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
        before = arguments.page.read_text() if arguments.page.exists() else "# Faults\n"
        arguments.page.write_text(f"{before}\n{page}")
    sys.exit(any(fault.problems for fault in faults))


if __name__ == "__main__":
    main()
