"""The certificate of the truncated SVD against the truth, over thousands of decompositions.

    python benchmarks/certificate.py [--seeds 4] [--threads 1,2] [-o benchmarks/results]

Every spectrum x scale x thread count x seed, with and without bfloat16 half-steps. The truth is
LAPACK's in float64 and the error is that of the factors as stored, so a certificate below it, by
however little, is counted as a fault. ATEN_CPU_CAPABILITY=default|avx2|avx512 chooses the
instruction set of torch's own kernels; the table names it.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from pathlib import Path

import torch
from harness import add_quick

from regraft.device import fast_bfloat16
from regraft.lowrank.svd import truncated_svd

SIZE = (272, 288)
RANK = 12
SCALES = [1e-30, 1e-6, 1.0, 1e6, 1e30]


def spectra(k: int) -> dict[str, torch.Tensor]:
    """Name -> (k,) singular values."""
    i = torch.arange(1, k + 1).double()
    result = {f"power law {p}": i**-p for p in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)}
    result |= {f"exponential {length}": torch.exp(-i / length) for length in (1, 4, 8, 32)}
    for tail in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        result[f"one value over a tail of {tail:g}"] = torch.where(i == 1, 1.0, tail * i**-0.2)
        result[f"rank {RANK} over noise of {tail:g}"] = torch.where(i <= RANK, 2.0, tail)
    for gap in (1.001, 1.01, 1.1):
        result[f"gap of {gap} at the rank"] = torch.where(i <= RANK, gap, 1.0) * i**-0.1
    result["flat"] = torch.ones(k).double()
    result["steep to float32"] = torch.exp(-i).clamp_min(1e-7)
    result["stairs"] = 2.0 ** -torch.div(i, 8, rounding_mode="floor")
    return result


def matrices(spectrum: torch.Tensor, seed: int) -> torch.Tensor:
    m, n = SIZE
    generator = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(rows, m, generator=generator, dtype=torch.float64))[0]
        for rows in (m, n)
    )
    return (u * spectrum) @ v.T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results"))
    add_quick(parser)
    arguments = parser.parse_args()
    scales, chosen = SCALES, spectra(SIZE[0])
    if arguments.quick:
        arguments.seeds, arguments.threads, scales = 1, "1", [1.0]
        chosen = dict(list(chosen.items())[:3])
    threads = [int(count) for count in arguments.threads.split(",")]
    halves = [False, True] if fast_bfloat16(torch.device("cpu")) else [False]
    started = time.monotonic()
    rows, below, decompositions, without, beyond = [], 0, 0, 0, 0
    for name, spectrum in chosen.items():
        worst, slack, relative = -math.inf, [], 0.0
        unproven = 0
        for seed in range(arguments.seeds):
            unit = matrices(spectrum, seed)
            for scale in scales:
                delta = (unit * scale).float()
                wide = delta.double() / scale
                optimum = float(torch.linalg.svdvals(wide)[RANK:].norm())
                relative = optimum / float(wide.norm())
                for count in threads:
                    torch.set_num_threads(count)
                    for half in halves:
                        copy = delta.bfloat16() if half else delta
                        result = truncated_svd(delta, RANK, seed=seed, half=copy)
                        product = (result.U.double() * (result.S / scale)) @ result.Vt.double()
                        ratio = float((wide - product).norm()) / optimum
                        certificate = result.certificate()
                        decompositions += 1
                        below += certificate < ratio
                        beyond += certificate > 1.001
                        unproven += math.isinf(certificate)
                        worst = max(worst, ratio)
                        slack.append(certificate - ratio)
        without += unproven
        finite = [value for value in slack if math.isfinite(value)]
        rows.append(
            f"| {name} | {relative:.1e} | {worst - 1:.1e} | {min(slack):.1e} | "
            f"{max(finite):.1e} | {unproven} |"
            if finite
            else f"| {name} | {relative:.1e} | {worst - 1:.1e} | n/a | n/a | {unproven} |"
        )
        print(rows[-1], flush=True)
    copies = "with and without" if len(halves) == 2 else "not on this chip"
    capability = torch.backends.cpu.get_cpu_capability()
    text = "\n".join(
        [
            "# The certificate of the truncated SVD against the truth",
            "",
            f"`python benchmarks/certificate.py --seeds {arguments.seeds} "
            f"--threads {arguments.threads}`, {time.strftime('%Y-%m-%d')}, torch "
            f"{torch.__version__}, {platform.machine()}, {capability}, {os.cpu_count()} cores, "
            f"bfloat16 half-steps {copies}, {time.monotonic() - started:.0f} s.",
            "",
            f"{decompositions} decompositions of {SIZE[0]} x {SIZE[1]} matrices at rank {RANK}, "
            f"scales {', '.join(f'{s:g}' for s in scales)}. Certificate below the true ratio: "
            f"**{below}**. Certificate above 1.001: {beyond}, of which without a finite "
            f"certificate, because the least error is at the level of the arithmetic: {without}.",
            "",
            "| spectrum | least error / norm | worst true ratio - 1 | least certificate - ratio | "
            "largest (finite) | no certificate |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    if not arguments.quick:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "certificate.md").write_text(text, encoding="utf-8")
    print(text)
    if below:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
