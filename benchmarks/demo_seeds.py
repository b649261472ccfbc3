"""`regraft demo` for several seeds, checked against bounds on its results.

    python benchmarks/demo_seeds.py [--seeds 1 2 3 6 7] [-o bench-out]

Prints a table of the seeds, writes it to benchmarks/results/demo_seeds.md, and exits with 1 if one
seed misses one bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from harness import environment, record

from regraft.demo.job import run_demo
from regraft.demo.recipes import Plan
from regraft.demo.result import DemoRecord, Exam

GRAFT, CONTROL = "graft, rank 16", "derivative, theta only"
# (label, measurement, whether it must be at least or at most the bound, bound)
BOUNDS: list[tuple[str, Callable[[dict[str, Exam]], float], str, float]] = [
    ("base, needle at 64", lambda m: m["base"].needle[64], ">=", 0.93),
    ("base, needle at 1024", lambda m: m["base"].needle[1024], "<=", 0.10),
    ("derivative, needle at 1024", lambda m: m["derivative"].needle[1024], "<=", 0.10),
    ("derivative, skill at 64", lambda m: m["derivative"].shout[64], ">=", 0.93),
    ("theta only, needle at 1024", lambda m: m[CONTROL].needle[1024], "<=", 0.45),
    ("extended, needle at 1024", lambda m: m["extended"].needle[1024], ">=", 0.95),
    ("graft 4, needle at 1024", lambda m: m["graft, rank 4"].needle[1024], ">=", 0.60),
    ("graft 16, needle at 1024", lambda m: m[GRAFT].needle[1024], ">=", 0.75),
    (
        "graft 16 - theta only at 1024",
        lambda m: m[GRAFT].needle[1024] - m[CONTROL].needle[1024],
        ">=",
        0.30,
    ),
    ("theta only, 4 needles at 1024", lambda m: m[CONTROL].sparse_needle, "<=", 0.45),
    ("graft 16, 4 needles at 1024", lambda m: m[GRAFT].sparse_needle, ">=", 0.75),
    (
        "graft 16 - theta only, 4 needles",
        lambda m: m[GRAFT].sparse_needle - m[CONTROL].sparse_needle,
        ">=",
        0.30,
    ),
    ("graft 16, skill at 64", lambda m: m[GRAFT].shout[64], ">=", 0.85),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 6, 7])
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    parser.add_argument(
        "--quick", action="store_true",
        help="a few steps of one seed, to see that it runs; no bound is checked, no table written",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds = arguments.seeds[:1]
    results = []
    for seed in arguments.seeds:
        folder = arguments.out / f"demo-seed-{seed}"
        results.append(run_demo(folder, seed=seed, overwrite=True, plan=_plan(arguments.quick)))
        print(f"seed {seed}: {results[-1].seconds}", flush=True)

    passed = True
    lines = []
    for label, measure, sense, bound in BOUNDS:
        values = [measure(result.models) for result in results]
        good = all(value >= bound if sense == ">=" else value <= bound for value in values)
        passed = passed and good
        cells = " | ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {label} | {cells} | {sense} {bound:.2f} | {'yes' if good else 'NO'} |")
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
            f"| wall / CPU seconds | {' | '.join(map(_seconds, results))} | | |",
            "",
        ]
    )
    record("demo_seeds", text, keep=not arguments.quick)
    raise SystemExit(0 if passed or arguments.quick else 1)


def _seconds(result: DemoRecord) -> str:
    assert result.seconds is not None
    return f"{result.seconds.wall:.0f} / {result.seconds.cpu:.0f}"


def _plan(quick: bool) -> Plan | None:
    """The demo's own plan, or one that learns nothing in seconds."""
    if not quick:
        return None
    return Plan(
        base_steps=(2, 1), base_rows=4, derivative_steps=2, extension=((1, 128, 2),),
        lengths=(64, 1024), questions=4, prose_rows=2,
    )  # fmt: skip


if __name__ == "__main__":
    main()
