"""Plain against calibrated extraction at several ranks, on the models of `regraft demo`.

    python benchmarks/calibrated.py [--demo demo-out] [-o calibrated-out]

Runs the demo first where its folder does not exist. Calibration text: rows of the toy language that
nobody was trained or is examined on. Both kinds of adapter are applied to the base (extraction
fidelity) and to the derivative (transfer) and answer the same questions; intervals are 95%.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness import add_quick, environment, record

import regraft
from regraft import progress
from regraft.adapters.extract import moments
from regraft.adapters.extract.select import Module
from regraft.adapters.reader import Adapter
from regraft.checkpoint.hf.roles import checkpoint_roles
from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.data.sources import Text, documents
from regraft.evaluate.result import EvaluationRecord
from regraft.evaluate.settings import GraftPoint
from regraft.evaluate.statistics import Ratio

KINDS = ("plain", "calibrated")


@dataclass
class Options:
    demo: Path
    out: Path
    ranks: list[int]
    lengths: list[int]
    items: int
    tokens: int
    seed: int
    quick: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"))
    parser.add_argument("-o", "--out", type=Path, default=Path("calibrated-out"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--seed", type=int, default=0)
    add_quick(parser)
    options = Options(**vars(parser.parse_args()))
    if options.quick:
        options = replace(
            options, ranks=options.ranks[:1], lengths=[128], items=2, tokens=4096,
        )  # fmt: skip
    if not options.demo.exists():
        if options.quick:
            raise SystemExit(f"{options.demo} does not exist: run `regraft demo` first")
        regraft.run_demo(options.demo)
    with progress.hide_notes():
        compare(options)


def compare(options: Options) -> None:
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    base, extended = options.demo / "trained/base", options.demo / "trained/extended"
    with Checkpoint.open(extended) as checkpoint:
        length = min(1024, checkpoint_context(checkpoint).max_position_embeddings)
    text = options.out / "calibration.jsonl"
    write_text(text, rows=options.tokens // length + 8, words=length)
    adapters: dict[str, Path] = {}
    records = {}
    for rank in options.ranks:
        for kind in KINDS:
            name = f"{kind}-{rank}"
            how: dict[str, Any] = {}
            if kind == "calibrated":
                how = {"calibrate": text, "calibrate_length": length,
                       "calibrate_tokens": options.tokens}  # fmt: skip
            adapters[name] = options.out / name
            records[name] = regraft.extract_lora(
                base, extended, adapters[name], rank=rank, verify=False, **how
            )
    weighted = weighted_errors(base, extended, text, length, options.tokens, adapters)
    long = examine(options, adapters, "notes,perplexity", options.lengths, options.out / "long")
    skill = examine(options, adapters, "shout", [64], options.out / "skill")
    errors = {name: (weighted[name], records[name].totals.error) for name in adapters}
    page(options, errors, long, skill)


def write_text(path: Path, rows: int, words: int) -> None:
    """Rows of notes, questions and prose, as JSON lines."""
    source = Text("synthetic", "notes", documents=rows, words=words, seed=987_654)
    lines = [json.dumps({"text": text}) for text in documents(source)]
    path.write_text("\n".join(lines) + "\n")


def weighted_errors(
    base: Path, extended: Path, text: Path, length: int, tokens: int, adapters: dict[str, Path]
) -> dict[str, float]:
    """Relative error of adapters as stored, in the norms of the inputs on the text."""
    missed, whole = dict.fromkeys(adapters, 0.0), 0.0
    loaded = {name: Adapter.open(path) for name, path in adapters.items()}
    with Checkpoint.open(base) as b, Checkpoint.open(extended) as e:
        calibration = moments.open_calibration(
            str(text), length, tokens, b, e, checkpoint_context(e), seed=0, force=False
        )
        modules = []
        for name, role in checkpoint_roles(b).items():
            if role.kind == "projection":
                rows, columns = b.tensors[name].shape
                modules.append(Module(role.module, name, "linear", (rows, columns), role.layer))
        bar = progress.Bar("", None, None)
        norms = moments.input_norms(e, calibration, modules, torch.device("cpu"), bar)
        for norm, members in norms:
            for module in members:
                delta = e.tensor(module.tensor).double() - b.tensor(module.tensor).double()
                whole += float(norm.product(delta).square().sum())
                for name, adapter in loaded.items():
                    up, down = adapter.factors(module.tensor)
                    rest = delta - up.double() @ down.double()
                    missed[name] += float(norm.product(rest).square().sum())
    return {name: math.sqrt(value / whole) for name, value in missed.items()}


def examine(
    options: Options, adapters: dict[str, Path], suite: str, lengths: list[int], out: Path
) -> EvaluationRecord:
    trained = options.demo / "trained"
    result = regraft.evaluate_models(
        [f"base={trained / 'base'}", f"recipient={trained / 'shouter'}",
         f"donor={trained / 'extended'}"],
        out, matrix=True, suite=suite, lengths=",".join(map(str, lengths)), items=options.items,
        haystack="world", twins=False, seed=options.seed,
        adapters=tuple(map(str, adapters.values())),
        grafts=tuple(GraftPoint(f"graft {name}", str(path)) for name, path in adapters.items()),
    )  # fmt: skip
    assert isinstance(result, EvaluationRecord)
    return result


def page(
    options: Options,
    errors: dict[str, tuple[float, float]],
    long: EvaluationRecord,
    skill: EvaluationRecord,
) -> None:
    lengths = options.lengths
    head = ["adapter", "error on inputs", "plain error",
            *(f"{what} at {n}" for what in ("fidelity", "transfer") for n in lengths),
            *(f"NLL {span}" for span in spans(long)), "skill at 64"]  # fmt: skip
    rows = [head, ["---"] * len(head)]
    assert long.fidelity is not None
    assert long.ratios is not None
    names = {Path(adapter.place).name: name for name, adapter in long.fidelity.adapters.items()}
    for name, (weighted, plain) in errors.items():
        graft = f"graft {name}"
        rows.append([
            name.replace("-", ", rank "), f"{weighted:.3f}", f"{plain:.3f}",
            *(ratio(long.fidelity.ratios["notes"][n][names[name]]) for n in lengths),
            *(ratio(long.ratios["notes"][n][f"transfer {graft}"]) for n in lengths),
            *nll(long, graft), score(skill, graft, "shout", 64),
        ])  # fmt: skip
    for name in ("base", "recipient", "theta only", "donor"):
        answers = [score(long, name, "notes", n) for n in lengths]
        rows.append([f"*{name}*", "", "", *([""] * len(lengths)), *answers,
                     *nll(long, name), score(skill, name, "shout", 64)])  # fmt: skip
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    text = f"""# Calibrated extraction on the demo's models

    python benchmarks/calibrated.py --items {options.items} --lengths {" ".join(map(str, lengths))}

{environment("transformers")}

{table}

{options.items} questions a length (task `notes`), 95% intervals; rows in italics are the models
themselves, with shares of right answers in the columns of transfer. NLL: of prose by position, of
the graft. Error on inputs: relative, in the norm of the inputs on {options.tokens:,} tokens of
calibration text, of the adapters as stored.
"""
    record("calibrated", text, keep=not options.quick)


def spans(result: EvaluationRecord) -> list[str]:
    """The last two spans of positions."""
    perplexity = next(m.perplexity for m in result.measures.values() if m.perplexity)
    return list(perplexity.nll)[-2:]


def nll(result: EvaluationRecord, name: str) -> Iterator[str]:
    measures = result.measures.get(name)
    for span in spans(result):
        perplexity = None if measures is None else measures.perplexity
        yield "" if perplexity is None else f"{perplexity.nll[span]:.3f}"


def score(result: EvaluationRecord, name: str, task: str, length: int) -> str:
    cell = result.cells.get(name, {}).get(task, {}).get(length)
    return "" if cell is None else f"{cell.score:.0%}"


def ratio(value: Ratio | None) -> str:
    if value is None:
        return "n/a"
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"


if __name__ == "__main__":
    main()
