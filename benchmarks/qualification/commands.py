"""regraft's commands run in this process; merge and apply on the device against the CPU."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import yaml

from qualification.report import Report
from qualification.scope import Scope
from regraft import Checkpoint

_DIFFERING = 1e-2
"""Share of the weights that may differ by one unit in the last place of bfloat16: sums in float32
differ by 2^-24 of their terms, which rounds one in 2^16 sums of one term, and one in a few hundred
of those of rank 64, to the neighbouring number of bfloat16."""


def regraft(*arguments: object) -> float:
    """Run a command in this process, so that its seconds, which are returned, include no imports.

    Raises RuntimeError if it fails; the log has the reason.
    """
    from regraft.cli import main

    began = time.perf_counter()
    code: object = 0
    before, sys.argv = sys.argv, ["regraft", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    if code:
        raise RuntimeError(f"regraft {' '.join(map(str, arguments))} ended with code {code}")
    return time.perf_counter() - began


def check_merge(scope: Scope, report: Report) -> None:
    """The same recipes and the same adapter on the device and on the CPU, weight by weight."""
    from qualification.extraction import models

    folders = models(scope)
    adapter = scope.folder / "lora-for-apply"
    regraft(
        "extract-lora", folders["base"], folders["extended"], "-o", adapter, "--rank",
        scope.pick(64, 64, 8), "--device", scope.device.type, "--overwrite", "--no-verify",
        "--quiet",
    )  # fmt: skip
    out = scope.folder / "on"
    seconds = {}
    for device in (scope.device.type, "cpu"):
        command = ("apply", adapter, folders["derivative"], "-o", f"{out}-{device}", "--device",
                   device, "--overwrite", "--quiet")  # fmt: skip
        seconds[device] = regraft(*command)
    _compare(scope, report, "apply", out, seconds)
    inputs = [
        {"model": str(folders[kind]), "parameters": {"weight": weight, "density": density}}
        for kind, weight, density in (("extended", 0.7, 0.4), ("derivative", 0.3, 0.6))
    ]
    for method in scope.pick(
        ("ties", "dare_ties", "slerp"), ("ties",), ("ties", "dare_ties", "slerp")
    ):
        recipe = {
            "merge_method": method, "base_model": str(folders["base"]), "models": inputs,
            "context": {"from": str(folders["extended"])}, "dtype": "bfloat16",
        }  # fmt: skip
        if method == "slerp":
            two = [{"model": str(folders[kind])} for kind in ("base", "extended")]
            recipe |= {"models": two, "parameters": {"t": 0.35}}
        path = scope.folder / f"{method}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        seconds = {}
        try:
            for device in (scope.device.type, "cpu"):
                seconds[device] = regraft(
                    "merge", path, "-o", f"{out}-{device}", "--device", device, "--overwrite",
                    "--quiet",
                )  # fmt: skip
        except RuntimeError as error:
            report.check(f"merge, {method}", False, error=str(error))
            continue
        _compare(scope, report, f"merge, {method}", out, seconds)


def _compare(scope: Scope, report: Report, name: str, out: Path, seconds: dict[str, float]) -> None:
    differing = total = units = 0
    with Checkpoint.open(f"{out}-{scope.device.type}") as a, Checkpoint.open(f"{out}-cpu") as b:
        same_config = a.config == b.config
        for tensor in b.tensors:
            x, y = (one.tensor(tensor).to(scope.device) for one in (a, b))
            differing += int((x != y).sum())
            units = max(units, int((_ordered(x) - _ordered(y)).abs().max()))
            total += x.numel()
    report.check(
        name, differing <= _DIFFERING * total and units <= 1 and same_config,
        device_s=seconds[scope.device.type], CPU_s=seconds["cpu"], differing=differing, of=total,
        units_apart=units,
    )  # fmt: skip


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """Integers in the order of bfloat16 numbers, one apart where they are neighbours."""
    bits = values.bfloat16().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)
