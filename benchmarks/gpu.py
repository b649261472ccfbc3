"""Qualification of regraft on one GPU: correctness, speed and memory.

    python benchmarks/gpu.py -o OUT [--quick] [--part NAME ...] [--seconds 570]
    python benchmarks/gpu.py -o OUT --rehearse        # tiny, on a CPU
    python benchmarks/gpu.py --table OUT [--table OLDER ...]

Parts run in order of their value, each in a process of its own with its own time limit, until the
seconds are used up. Every figure is a line of OUT/gpu.jsonl and on disk at once, so that a part
that fails or hangs, or a machine that is taken away, loses nothing; OUT/gpu.log has the output of
the parts, and OUT/gpu.md, written at the end or by --table, the tables. `docs/gpu.md` lists what
each part checks. Exit codes: 0 all parts ended and all checks hold; 1 a check does not hold, or a
part failed or was stopped; 2 there is no GPU, or a package is missing.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from qualification.parts import FIRST, MACHINE, PARTS, Part
from qualification.processes import Outcome, in_new_interpreter, run_part
from qualification.report import OK, Line, Report, read, tables

PACKAGES = ("torch", "transformers", "peft", "safetensors", "huggingface_hub", "numpy", "xxhash",
            "typer", "rich", "jinja2", "matplotlib", "yaml", "pydantic")  # fmt: skip
_IMPORTED = ("torch.distributed.checkpoint", "torch.distributed.fsdp", "peft", "regraft.cli",
             "transformers.models.llama.modeling_llama", "matplotlib.backends.backend_agg",
             "matplotlib.font_manager")  # fmt: skip
_NO_GPU = 3  # exit code of the first part
_LEAST = 6.0  # seconds below which no part is started


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("gpu-out"))
    parser.add_argument("--part", action="append", choices=[part.name for part in PARTS])
    parser.add_argument("--quick", action="store_true", help="small sizes: about two minutes")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--seconds", type=float, default=570.0, help="for all parts together")
    parser.add_argument(
        "--table", type=Path, action="append",
        help="only write the tables of this folder; repeat to add parts that only older runs have, "
        "or that ended well only there",
    )  # fmt: skip
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # by a new interpreter
    arguments = parser.parse_args()
    if arguments.table:
        for folder in arguments.table:
            if not (folder / "gpu.jsonl").is_file():
                return _refuse(f"there is no gpu.jsonl in {folder}")
        return _conclude(*arguments.table)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return _refuse(_missing(missing))
    scale = "rehearse" if arguments.rehearse else "quick" if arguments.quick else "full"
    if arguments.one:
        return _run(*arguments.one, scale=scale, out=arguments.out)
    return Run(arguments.out, scale, arguments.seconds, arguments.part).run()


def _missing(names: Sequence[str]) -> str:
    text = f"not installed here: {', '.join(names)}."
    if "pydantic" in names:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        text += (
            f" Carry the wheels of pydantic, pydantic-core (for Python {version}), annotated-types "
            "and typing-inspection, and put the folder they are installed to on PYTHONPATH."
        )
    return text


class Run:
    """One run of several parts. names: of the parts; None: those of the scale."""

    def __init__(self, out: Path, scale: str, seconds: float, names: Sequence[str] | None) -> None:
        self.began = time.monotonic()
        self.out, self.scale, self.seconds = out, scale, seconds
        self.parts = [part for part in PARTS if part.name in names] if names else [
            part for part in PARTS if scale != "quick" or part.quick
        ]  # fmt: skip
        self.file, self.log = out / "gpu.jsonl", out / "gpu.log"
        self.forks = True  # whether CUDA starts after a fork
        self.imports = 0.0  # seconds

    def run(self) -> int:
        """Run the parts and write the tables; the exit code."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.file.write_text("")
        self.log.write_text("")
        # torch then counts GPUs by NVML and does not start CUDA, which would not survive a fork.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        self.folder = Path(tempfile.mkdtemp(prefix="regraft-gpu-"))
        os.environ["REGRAFT_CACHE"] = str(self.folder / "cache")
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        try:
            self.forks = _preload()
            code = self._machine()
            if code:
                return code
            for part in self.parts:
                self._part(part)
        except KeyboardInterrupt:
            Report(self.file, "all parts").end("interrupted", self._elapsed())
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        return _conclude(self.out)

    def _elapsed(self) -> float:
        return time.monotonic() - self.began

    def _left(self) -> float:
        """Seconds left for parts; the last second is for the tables."""
        return self.seconds - self._elapsed() - 1

    def _start_seconds(self) -> float:
        """Seconds until a part begins its work: a new interpreter imports everything again."""
        return 0.0 if self.forks else self.imports

    def _machine(self) -> int:
        """Run the first part, which needs a GPU that starts after a fork or in a new interpreter.
        Returns 0, or the exit code of the whole run."""
        self.imports = self._elapsed()
        print(f"imports: {self.imports:.1f} s", flush=True)
        outcome = self._start(FIRST, MACHINE)
        if outcome.code == _NO_GPU and self.scale != "rehearse" and _has_device_file():
            self.forks = False
            outcome = self._start(FIRST, MACHINE)
        if outcome.code == 0:
            return 0
        if outcome.code == _NO_GPU:
            import torch

            return _refuse(
                f"torch {torch.__version__} sees no GPU here; run this where it does, or rehearse "
                "it on a CPU with --rehearse"
            )
        Report(self.file, FIRST.name).end(_reason(outcome), outcome.seconds, outcome.tail)
        return _conclude(self.out)

    def _part(self, part: Part) -> None:
        report = Report(self.file, part.name)
        limit = part.quick if self.scale == "quick" and part.quick else part.seconds
        if self._left() < _LEAST + self._start_seconds():
            report.end("no time left", 0)
            return
        outcome = self._start(part, limit)
        tail = "" if outcome.code == 0 else outcome.tail
        report.end(_reason(outcome), outcome.seconds, tail)

    def _start(self, part: Part, limit: float) -> Outcome:
        limit = min(limit + self._start_seconds(), self._left())
        print(f"{part.name}: at {self._elapsed():.0f} s, {limit:.0f} s at most", flush=True)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n===== {part.name}\n")
        deadline = time.monotonic() + limit
        folder, out, scale = self.folder, self.out, self.scale
        if self.forks:

            def work() -> object:
                sys.exit(_run(part.name, part.function, folder, deadline, scale=scale, out=out))

        else:
            words = ["-o", str(out), *([] if scale == "full" else [f"--{scale}"]), "--one"]
            words += [part.name, part.function, str(folder), str(deadline)]
            work = in_new_interpreter(words)

        size = self.file.stat().st_size
        outcome = run_part(work, self.log, limit)
        with self.file.open(encoding="utf-8") as file:
            file.seek(size)
            print(file.read(), end="", flush=True)
        print(f"{part.name}: {_reason(outcome)}, {outcome.seconds:.1f} s", flush=True)
        if outcome.code and outcome.code != _NO_GPU:
            print(outcome.tail, flush=True)
        return outcome


def _run(
    name: str, function: str, folder: Path | str, deadline: float | str, *, scale: Any, out: Path
) -> int:
    """Run one part in this process."""
    import torch
    from qualification.scope import Scope

    rehearsing = scale == "rehearse"
    if not rehearsing and not torch.cuda.is_available():
        return _NO_GPU
    device = torch.device("cpu" if rehearsing else "cuda:0")
    if not rehearsing:
        try:
            torch.cuda.init()
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return _NO_GPU
        torch.cuda.set_device(device)
    scope = Scope(scale, device, Path(folder), float(deadline))
    module, _, attribute = function.partition(":")
    run = getattr(importlib.import_module(f"qualification.{module}"), attribute)
    run(scope, Report(out / "gpu.jsonl", name))
    return 0


def _preload() -> bool:
    """Import once what the parts need. Returns whether they may be forked: CUDA does not survive a
    fork, and bitsandbytes, which PEFT imports where it is installed, starts it."""
    from regraft.shell.process import set_environment

    set_environment()
    import torch

    modules = dict.fromkeys(part.function.partition(":")[0] for part in (FIRST, *PARTS))
    for name in (*_IMPORTED, *(f"qualification.{module}" for module in modules)):
        try:
            importlib.import_module(name)
        except Exception as error:  # the parts that need it import it again and end as failed
            print(f"{name} cannot be imported: {error}", file=sys.stderr)
    gc.freeze()  # or every collection of a part goes through all that was imported
    return not torch.cuda.is_initialized()


def _has_device_file() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/nvidia0").exists()


def _reason(outcome: Outcome) -> str:
    """How a part ended, in a word or two."""
    if outcome.code == 0:
        return OK
    if outcome.code is None:
        return "time limit"
    if outcome.code < 0:
        return f"killed by {signal.Signals(-outcome.code).name}"
    return "failed"


def _conclude(out: Path, *others: Path) -> int:
    """Write and print the tables of the folder, with parts that only the others have or that ended
    well only there; returns the exit code."""
    lines = read(out / "gpu.jsonl")
    for other in others:
        more = read(other / "gpu.jsonl")
        known, well = {line.part for line in lines}, _ended_well(lines)
        better = (_ended_well(more) - well) | ({line.part for line in more} - known)
        lines = [line for line in lines if line.part not in better]
        lines += [line for line in more if line.part in better]
    order = [FIRST.name, *(part.name for part in PARTS)]
    lines.sort(key=lambda line: order.index(line.part) if line.part in order else len(order))
    text = tables(lines)
    (out / "gpu.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if _all_hold(lines) else 1


def _ended_well(lines: Sequence[Line]) -> set[str]:
    """The parts that ran to their end, and the machine."""
    ended = {line.part for line in lines if line.kind == "end" and line.ok}
    return ended | {line.part for line in lines if line.kind == "machine"}


def _all_hold(lines: Sequence[Line]) -> bool:
    return bool(lines) and all(line.ok for line in lines)


def _refuse(message: str) -> int:
    print(f"gpu.py: {message}", file=sys.stderr)
    return 2


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
