"""`regraft demo` for several seeds, checked against bounds on its results.

    python benchmarks/demo_seeds.py [--seeds 1 2 3 6 7] [-o bench-out]

Prints a table of the seeds, writes it to benchmarks/results/demo_seeds.md, and exits with 1 if one
seed misses one bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import environment, record, run, script

from regraft.evaluate.result import EvaluationRecord, read_result
from regraft.graft.choose import SweepRecord
from regraft.graft.record import FILE, JobRecord
from regraft.records import read_record


@dataclass(frozen=True)
class Result:
    """The results of one seed."""

    report: EvaluationRecord
    sweep: SweepRecord
    wall: float
    cpu: float

    def near(self, role: str, task: str) -> float:
        """The share answered at the shortest length."""
        cells = self.report.cells[role][task]
        return cells[min(cells)].score

    def far(self, role: str, task: str) -> float:
        """The share answered at the greatest length."""
        cells = self.report.cells[role][task]
        return cells[max(cells)].score

    def point(self, rank: str) -> float:
        """The share answered at the greatest length, in the sweep at scale 1."""
        return next(p.score for p in self.sweep.points if (p.rank, p.scale) == (rank, 1.0))


# (label, measurement, whether it must be at least or at most the bound, bound)
BOUNDS: list[tuple[str, Callable[[Result], float], str, float]] = [
    ("shouter, notes at 64", lambda r: r.near("recipient", "notes"), ">=", 0.93),
    ("shouter, notes at 1024", lambda r: r.far("recipient", "notes"), "<=", 0.10),
    ("shouter, skill at 64", lambda r: r.near("recipient", "shout"), ">=", 0.93),
    ("theta only, notes at 1024", lambda r: r.far("theta only", "notes"), "<=", 0.45),
    ("extended, notes at 1024", lambda r: r.far("donor", "notes"), ">=", 0.95),
    ("rank 4, notes at 1024", lambda r: r.point("4"), ">=", 0.60),
    ("rank 16, notes at 1024", lambda r: r.point("16"), ">=", 0.75),
    ("graft, notes at 1024", lambda r: r.far("graft", "notes"), ">=", 0.75),
    (
        "graft - theta only at 1024",
        lambda r: r.far("graft", "notes") - r.far("theta only", "notes"),
        ">=",
        0.30,
    ),
    ("graft, skill at 64", lambda r: r.near("graft", "shout"), ">=", 0.85),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 6, 7])
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    parser.add_argument(
        "--quick", action="store_true",
        help="one seed, to see that it runs; no bound is checked, no table written",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds = arguments.seeds[:1]
    results = []
    for seed in arguments.seeds:
        results.append(one(arguments.out.resolve() / f"demo-seed-{seed}", seed))
        print(f"seed {seed}: {_seconds(results[-1])}", flush=True)

    passed = True
    lines = []
    for label, measure, sense, bound in BOUNDS:
        values = [measure(result) for result in results]
        good = all(value >= bound if sense == ">=" else value <= bound for value in values)
        passed = passed and good
        cells = " | ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {label} | {cells} | {sense} {bound:.2f} | {'yes' if good else 'NO'} |")
    chosen = [result.sweep.points[result.sweep.chosen].label for result in results]
    text = "\n".join(
        [
            "# regraft demo by seed",
            "",
            environment("transformers", "peft"),
            "",
            "Share of questions answered; seconds on a machine shared with other work.",
            "",
            f"| | {' | '.join(f'seed {seed}' for seed in arguments.seeds)} | bound | passed |",
            f"|---|{'--:|' * len(results)}---|---|",
            *lines,
            f"| chosen | {' | '.join(chosen)} | | |",
            f"| wall / CPU seconds | {' | '.join(map(_seconds, results))} | | |",
            "",
        ]
    )
    record("demo_seeds", text, keep=not arguments.quick)
    raise SystemExit(0 if passed or arguments.quick else 1)


def one(out: Path, seed: int) -> Result:
    """Run the demo in a process of its own."""
    child = run([script("regraft"), "demo", "--seed", str(seed), "--overwrite", "-o", str(out)])
    job = read_record(out / FILE, JobRecord, "")
    (target,) = job.targets.values()
    assert target.report is not None
    assert target.sweep is not None
    return Result(read_result(out / target.report), target.sweep, child.wall, child.cpu)


def _seconds(result: Result) -> str:
    return f"{result.wall:.0f} / {result.cpu:.0f}"


if __name__ == "__main__":
    main()
