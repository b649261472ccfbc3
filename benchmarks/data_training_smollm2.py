"""Choosing real text by the steps of `regraft data build`: the same training of SmolLM2-135M.

    python benchmarks/data_training_smollm2.py MODEL -o OUT --text FOLDER --held-out FILE
    python benchmarks/data_training_smollm2.py --table OUT             # only the table

MODEL, text and held-out text are those of smollm2_transfer.py. The model gets the theta of eight
times its context, which costs it much of what it could do, and is trained on equally many tokens in
rows of 2k, chosen from one sample of the text in different ways. Each result is asked for needles
in 4k tokens of the held-out text, and scored on that text by position.

The same command goes on where an earlier one was stopped. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

from harness import add_quick, environment, record
from smollm2 import corpus, recipes
from smollm2.jobs import Job, run_jobs
from smollm2.model import unpack, with_rope_of

from regraft.data.build.record import read_dataset
from regraft.evaluate.result import Answer, parse_answers, read_result
from regraft.evaluate.shared_output import read_lines
from regraft.rope.laws import scaling_law
from regraft.units import format_tokens

CONTEXT, THETA = 8192, 1e5  # of the model
BEFORE, RAISED = "before", "theta only"
WINDOWS = ("200", "2048")


@dataclass(frozen=True)
class Size:
    """length: tokens of a training row. steps, batch: of the training, and rows of a step. sample:
    characters of the text to choose from. text_length: tokens of a text that is asked about.
    """

    length: int = 2048
    steps: int = 8
    batch: int = 3
    sample: int = 1_000_000
    text_length: int = 4096
    items: int = 32
    texts: int = 2

    @property
    def rows(self) -> int:
        """Rows of a training."""
        return self.steps * self.batch


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out/data-training-smollm2"))
    parser.add_argument("--text", type=Path, action="append", default=[])
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--at-once", type=int, default=2, help="jobs at a time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", type=Path, help="only write the table of this folder")
    add_quick(parser)
    arguments = parser.parse_args()
    size = Size(256, 1, 1, 200_000, 512, 4, 1) if arguments.quick else Size()
    if arguments.table is None:
        if arguments.model is None or arguments.held_out is None:
            parser.error("give MODEL and --held-out FILE")
        run(arguments, size)
    out = (arguments.table or arguments.out).resolve()
    record("data_training_smollm2", table(out, size), keep=not arguments.quick)
    return 0


def run(arguments: argparse.Namespace, size: Size) -> None:
    """Every selection, the training on it, and the evaluation; raises SystemExit if one failed."""
    out, base = arguments.out.resolve(), arguments.out.resolve() / "base"
    out.mkdir(parents=True, exist_ok=True)
    device = ["--device", arguments.device]

    def write_texts() -> None:
        folder = out / "texts"
        corpus.write(folder, arguments.text, arguments.held_out, 1, arguments.seed)
        _write_sample(folder / "sample.jsonl", arguments.text, size.sample, arguments.seed)

    texts = out / "texts" / "sample.jsonl"
    jobs = [
        Job("texts", write_texts, texts),
        Job("base", lambda: unpack(arguments.model, base), base / "model.safetensors"),
        _evaluation(out, BEFORE, base, size, device),
    ]
    for name, steps in selections(size, base).items():
        folder = _folder(name)
        built = out / f"data-{folder}"
        recipe = recipes.write(out, built.name, _build_recipe(texts, steps, base, arguments.seed))
        line = ["data", "build", str(recipe), "-o", str(built), "--resume", *device]
        jobs.append(Job(built.name, line, built, ("texts", "base"), heavy=True))
        recipe = recipes.write(out, folder, _training_recipe(base, built, size, arguments.seed))
        line = ["train", str(recipe), "-o", str(out / folder), "--resume", *device]
        jobs.append(Job(folder, line, out / folder, (built.name,), heavy=True))
        jobs.append(_evaluation(out, name, out / folder, size, device))
        if name == "random":
            only = out / _folder(RAISED)
            jobs.append(
                Job(only.name, partial(with_rope_of, base, out / folder, only), only, (folder,))
            )
            jobs.append(_evaluation(out, RAISED, only, size, device))
    threads = str(max(1, (os.cpu_count() or 1) // arguments.at_once))
    failed = run_jobs(
        jobs, out / "logs", arguments.at_once, arguments.at_once, 1e9, OMP_NUM_THREADS=threads
    )
    (out / "machine.txt").write_text(environment("transformers"))
    if failed:
        raise SystemExit("\n".join(f"{name}: {reason}" for name, reason in failed.items()))


def selections(size: Size, base: Path) -> dict[str, list[dict[str, Any]]]:
    """The steps of each selection, by name.

    Documents that fill a row are cut to between one and 1.4 rows, of which the training reads a
    random window.
    """
    most = size.length * 7 // 5
    long = {"length": {"minimum": size.length + 2, "maximum": most}}
    short = {"length": {"maximum": size.length // 4}}
    joined = {"length": {"join": most}}
    scored = {"model": str(base), "share": 0.3}
    window = min(200, size.length // 8)
    return {
        "random": [joined],
        "shorts joined": [short, joined],
        "shorts untied": [short, {"structure": {"length": most, "share": 1.0}}],
        "context gain": [long, {"long_dependency": {**scored, "windows": [window]}}],
        "with tasks": [long, {"tasks": {"share": 0.5, "kinds": ["retrieval"]}}],
        "long only": [long],
        "longattn": [long, {"long_dependency": {**scored, "measure": "longattn"}}],
    }  # fmt: skip


def _folder(name: str) -> str:
    return name.replace(" ", "-")


def _write_sample(path: Path, folders: list[Path], characters: int, seed: int) -> None:
    """Documents in random order until they have so many characters; long ones in parts."""
    most = 100_000
    parts = [
        text[at : at + most]
        for text in corpus.documents(folders)
        for at in range(0, len(text), most)
    ]
    random.Random(seed).shuffle(parts)
    with path.open("w", encoding="utf-8") as file:
        for text in parts:
            file.write(json.dumps({"text": text}) + "\n")
            characters -= len(text)
            if characters < 0:
                return


def _build_recipe(
    texts: Path, steps: list[dict[str, Any]], base: Path, seed: int
) -> dict[str, Any]:
    source = {"name": "text", "licence": "various", "jsonl": str(texts), "steps": steps}
    return {"sources": [source], "output": {"tokenizer": str(base)}, "seed": seed}


def _training_recipe(base: Path, built: Path, size: Size, seed: int) -> dict[str, Any]:
    return {
        "model": str(base),
        "method": "full",
        "dtype": "bfloat16",
        "data": {"built": str(built), "held_out": 0},
        "stages": [{
            "length": size.length, "theta": scaling_law(THETA, CONTEXT, 8 * CONTEXT),
            "steps": size.steps, "batch": size.batch, "rate": 2e-4,
            "schedule": {"kind": "cosine", "warmup": min(2, size.steps - 1), "floor": 0.1},
        }],
        "memory": {"checkpoint": False},
        "optimizer": {"name": "adamw", "weight_decay": 0.01},
        "export": {"dtype": "bfloat16"},
        "save_every": 100000,
        "seed": seed,
    }  # fmt: skip


def _evaluation(out: Path, name: str, model: Path, size: Size, device: list[str]) -> Job:
    target = out / "scores" / _folder(name)
    line = [
        "evaluate", f"{_folder(name)}={model}", "-o", str(target), "--suite", "needle,perplexity",
        "--haystack", str(out / "texts" / "held-out.txt"), "--lengths", str(size.text_length),
        "--items", str(size.items), "--questions-per-text", "8", "--texts", str(size.texts),
        *device,
    ]  # fmt: skip
    return Job(f"score-{_folder(name)}", line, target, (model.name,), heavy=True)


def table(out: Path, size: Size) -> str:
    """The page of a finished run."""
    head = ["text", "documents", f"needles at {format_tokens(size.text_length)}", "answer's NLL"]
    head += ["less that of random, by text"]
    lines: list[list[str]] = []
    names = [BEFORE, RAISED, *selections(size, out / "base")]
    for name in names:
        folder = _folder(name)
        if not (out / "scores" / folder).is_dir():
            continue
        result = read_result(out / "scores" / folder)
        cell = result.cells[folder]["needle"][size.text_length]
        measured = result.measures[folder].perplexity
        assert measured is not None  # the suites that were asked for
        assert cell.nll is not None
        parts = [key for key in measured.nll if int(key.split("-")[1]) > size.text_length // 8]
        windows = [window for window in WINDOWS if window in measured.gain]
        if not lines:
            head += [f"NLL of tokens {part}" for part in parts]
            head += [f"gain beyond {window}" for window in windows]
        low, high = cell.interval
        lines.append([
            name,
            _documents(out / f"data-{folder}"),
            f"{cell.score:.2f} ({low:.2f}-{high:.2f})",
            f"{cell.nll:.2f}",
            _differences(out, folder, size.text_length),
            *(f"{measured.nll[part]:.3f}" for part in parts),
            *(f"{measured.gain[window]:.3f}" for window in windows),
        ])  # fmt: skip
    rows = [head, ["---", *["--:"] * (len(head) - 1)], *lines]
    return "\n".join([
        "# Choosing real text by the steps of regraft data build: SmolLM2-135M",
        "",
        "    python benchmarks/data_training_smollm2.py smol.gguf -o OUT --text text "
        "--held-out pepys.txt.xz",
        "",
        (out / "machine.txt").read_text(),
        "",
        f"Theta of {format_tokens(8 * CONTEXT)}; {size.rows} rows of "
        f"{format_tokens(size.length)} of each selection, from the same "
        f"{size.sample / 1e6:.1f} million characters of Debian's perl-doc, python3.11-doc and "
        f"r-cran-janeaustenr. {size.items} questions about 4 texts; the NLL is of {size.texts} "
        "texts. Gain: NLL by the last tokens alone less that by all of the text.",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ])  # fmt: skip


def _differences(out: Path, folder: str, length: int) -> str:
    """The mean difference of the answers' NLL from `random`'s, and the least and greatest mean over
    the questions about one text."""
    answers = [
        _answers(out / "scores" / name / "items" / name, length) for name in (folder, "random")
    ]
    by_text: dict[int | None, list[float]] = {}
    for own, other in zip(*answers, strict=True):
        by_text.setdefault(own.text, []).append((own.nll or 0) - (other.nll or 0))
    means = [mean(values) for values in by_text.values()]
    return f"{mean(means):+.3f} ({min(means):+.3f} to {max(means):+.3f})"


def _answers(folder: Path, length: int) -> list[Answer]:
    return parse_answers(read_lines(folder / f"needle-{length}.jsonl"))


def _documents(built: Path) -> str:
    """How many documents a selection has."""
    if not built.is_dir():
        return ""
    return f"{sum(shard.documents for shard in read_dataset(built).shards):,}"


if __name__ == "__main__":
    sys.exit(main())
