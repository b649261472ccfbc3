"""The table and the figure of a finished run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import record

from regraft import drawing
from regraft.adapters.folder import RECORD
from regraft.evaluate.result import Cell, EvaluationRecord, read_result
from regraft.records.adapter import AdapterRecord
from regraft.records.files import read_record
from regraft.units import format_tokens
from smollm2.evaluations import score_folders, skill_folders
from smollm2.recipes import SIZES

FIRST = ("base", "derivative", "theta-only", "extended", "pose")
DRAWN = ("derivative", "theta-only", "extended", "graft-8", "graft-32", "graft-128", "full-delta")
WINDOW = "2048"
MACHINE = "machine.txt"
"""File with a line on software and machine."""


@dataclass(frozen=True)
class Row:
    """What one model scored."""

    name: str
    scores: EvaluationRecord
    skill: EvaluationRecord | None

    def cell(self, task: str, length: int) -> Cell | None:
        """Of the task `needle` or `reversal`."""
        result = self.scores if task == "needle" else self.skill
        if result is None or self.name not in result.cells:
            return None
        return result.cells[self.name].get(task, {}).get(length)


def write(folder: Path) -> None:
    """smollm2.md and smollm2.png in `folder`; in benchmarks/results, too, but for a quick run.

    There they are smollm2_cpu.md and .png for a run of the size `cpu`. Without scores nothing is
    written.
    """
    options: dict[str, Any] = json.loads((folder / "options.json").read_text())
    size = SIZES[options["size"]]
    rows = _rows(folder)
    if not rows:
        print(f"No model in {folder} has scores yet.")
        return
    failures = folder / "failed.json"  # a killed run has none
    failed: dict[str, str] = json.loads(failures.read_text()) if failures.exists() else {}
    lengths = list(size.lengths)
    by_name = {row.name: row for row in rows}
    head = ["model", *(f"needles at {format_tokens(n)}" for n in lengths)]
    head += [f"answer's NLL at {format_tokens(lengths[-1])}", "transfer"]
    parts = _parts(rows, lengths)
    head += [f"NLL {low}-{high}" for low, high in parts] + ["gain beyond 2k"]
    head += [f"skill at {format_tokens(n)}" for n in (size.skill_length, lengths[-1])]
    head += ["drift, KL"]
    lines = [_line(head), _line(["---", *["--:"] * (len(head) - 1)])]
    for row in rows:
        lines.append(_line([row.name, *_figures(row, by_name, lengths, parts, size.skill_length)]))
    window = _windowed(by_name.get("derivative"), parts[-1])
    if window is not None:
        name = f"derivative, last {format_tokens(int(WINDOW))} tokens"
        blank = [""] * (len(lengths) + 2 + len(parts) - 1)
        lines.append(_line([name, *blank, f"{window:.3f}", *[""] * 4]))
    text = [
        "# SmolLM2-135M: a context extension and its transfer to a derivative\n",
        f"    {_command(options)}\n",
        (folder / MACHINE).read_text() + "\n",
        _text(folder, options) + "\n",
        *lines,
        "",
        *_adapters(folder),
        "",
        *_not_done(by_name, failed),
    ]
    page = "\n".join(text)
    (folder / "smollm2.md").write_text(page)
    _draw(folder / "smollm2.png", by_name, lengths)
    name = "smollm2" if options["size"] == "gpu" else f"smollm2_{options['size']}"
    record(name, page, keep=options["size"] != "quick")
    if options["size"] != "quick":
        target = Path(__file__).parents[1] / "results" / f"{name}.png"
        target.write_bytes((folder / "smollm2.png").read_bytes())


def _not_done(done: Collection[str], failed: dict[str, str]) -> Iterator[str]:
    """Models without a score, and the failure that this goes back to."""
    for name in failed:
        model = name.removeprefix("score-")
        if model == name or model in done:
            continue
        reason = failed[name]
        while reason.endswith(" failed") and (cause := reason.removesuffix(" failed")) in failed:
            reason = failed[cause]
        yield f"- Not done: {model} ({reason})"


def _rows(folder: Path) -> list[Row]:
    """Of every model with scores; a model in several evaluations has those of the first."""
    scores, skill = (
        {name: result for path in reversed(paths) for result in [read_result(path)]
         for name in result.models}
        for paths in (score_folders(folder), skill_folders(folder))
    )  # fmt: skip
    order = {name: number for number, name in enumerate(FIRST)}
    names = sorted(scores, key=lambda name: (order.get(name, len(order)), _natural(name)))
    return [Row(name, scores[name], skill.get(name)) for name in names]


def _natural(name: str) -> tuple[str, int, str]:
    kind, _, rest = name.partition("-")
    rank, _, more = rest.partition("-")
    return (more or "", int(rank) if rank.isdigit() else 10**6, kind)


def _parts(rows: list[Row], lengths: list[int]) -> list[tuple[int, int]]:
    """The ranges of positions whose NLL is shown: one at 2k, and those beyond the least length."""
    measures = rows[0].scores.measures[rows[0].name].perplexity if rows else None
    ranges = [tuple(map(int, key.split("-"))) for key in (measures.nll if measures else {})]
    return [(low, high) for low, high in ranges if high == int(WINDOW) or high > lengths[0]]


def _figures(
    row: Row, rows: dict[str, Row], lengths: list[int], parts: list[tuple[int, int]], short: int
) -> list[str]:
    needles = [row.cell("needle", length) for length in lengths]
    last = needles[-1]
    measures = row.scores.measures[row.name].perplexity
    nll = measures.nll if measures else {}
    gain = measures.gain.get(WINDOW) if measures else None
    measured = row.skill.measures.get(row.name) if row.skill else None
    drift = measured.drift if measured else None
    return [
        *(_share(cell) for cell in needles),
        _number(last.nll if last else None, 2),
        _transfer(row, rows, lengths[-1]),
        *(_number(nll.get(f"{low}-{high}"), 3) for low, high in parts),
        _number(gain, 3),
        *(_share(row.cell("reversal", length)) for length in (short, lengths[-1])),
        _number(drift.kl if drift else None, 4),
    ]


def _windowed(row: Row | None, part: tuple[int, int]) -> float | None:
    """NLL of a text's second half by a window of its last tokens: no long context is needed."""
    measures = row.scores.measures[row.name].perplexity if row else None
    if measures is None or WINDOW not in measures.gain or 2 * part[0] != part[1]:
        return None
    return measures.nll[f"{part[0]}-{part[1]}"] + measures.gain[WINDOW]


def _transfer(row: Row, rows: dict[str, Row], length: int) -> str:
    """(model - derivative) / (extended - derivative) of the share of needles."""
    cells = [rows[n].cell("needle", length) if n in rows else None for n in FIRST[1:4:2]]
    own = row.cell("needle", length)
    if own is None or None in cells or row.name in FIRST[:4:3]:
        return ""
    recipient, donor = (cell.score for cell in cells if cell)
    return f"{(own.score - recipient) / (donor - recipient):.2f}" if donor > recipient else ""


def _share(cell: Cell | None) -> str:
    if cell is None:
        return ""
    low, high = cell.interval
    return f"{cell.score:.2f} ({low:.2f}-{high:.2f})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _command(options: dict[str, Any]) -> str:
    texts = " ".join(f"--text {Path(text).name}" for text in options["text"])
    return (
        f"python benchmarks/smollm2_transfer.py {Path(options['model']).name} -o smollm2-out "
        f"{texts} --held-out {Path(options['held_out']).name} --size {options['size']} "
        f"--rate {options['rate']:g} --skill-rate {options['skill_rate']:g} "
        f"--seed {options['seed']}"
    )


def _text(folder: Path, options: dict[str, Any]) -> str:
    size = SIZES[options["size"]]
    growth = ", then ".join(
        f"{steps} steps of {rows} rows of {format_tokens(length)}"
        for length, steps, rows in size.growth
    )
    window = format_tokens(size.window)
    short = (
        f"PoSE: as many in rows of {window}." if size.whole else f"All in PoSE rows of {window}."
    )
    return (
        f"Extended: {growth}, {size.tokens / 1e6:.1f}M tokens. {short} "
        f"Derivative: {size.skill_steps} steps of {size.skill_batch} "
        f"rows of {format_tokens(size.skill_length)}. Needles: {size.items} questions at each "
        f"length, {size.questions_per_text} about one text of {Path(options['held_out']).name}; "
        "in brackets 95% intervals. Transfer: share of what the extended model answers more than "
        f"the derivative, at {format_tokens(size.target)}. Gain: NLL of the second half of a text "
        "by its last 2k tokens alone less that by all of it. Skill: five words in reverse order, "
        "after a text of that length. Drift: KL from the derivative on short text."
    )


def _adapters(folder: Path) -> list[str]:
    lines = ["| adapter | error | of the change above rounding | MB |", "|---|--:|--:|--:|"]
    for path in sorted(folder.glob("adapter-*"), key=lambda path: _natural(path.name)):
        if not (path / "regraft.json").exists() or path.name.endswith("shuffled"):
            continue
        totals = read_record(path / RECORD, AdapterRecord, "extract it again").totals
        above = totals.signal_captured
        share = "" if above is None else f"{above:.1%}"
        megabytes = f"{totals.bytes / 1e6:.1f}"
        lines.append(_line([path.name, f"{totals.error:.3f}", share, megabytes]))
    return lines


def _draw(path: Path, rows: dict[str, Row], lengths: list[int]) -> None:
    """Needles by length, and NLL by position."""
    with drawing.figure(path, 2) as (needles, nll):
        for name, style in zip(DRAWN, drawing.styles(), strict=False):
            if name not in rows:
                continue
            row = rows[name]
            scores = [(n, cell.score) for n in lengths if (cell := row.cell("needle", n))]
            needles.plot(*zip(*scores, strict=True), label=name, **style)
            measures = row.scores.measures[name].perplexity
            if measures:
                points = [(int(key.split("-")[1]), value) for key, value in measures.nll.items()]
                nll.plot(*zip(*points, strict=True), label=name, **style)
        for axes, label in ((needles, "needles found"), (nll, "NLL of held-out text, nats")):
            axes.set_xscale("log", base=2)
            axes.set_xlabel("tokens of text")
            axes.set_ylabel(label)
        needles.set_xticks(lengths, [format_tokens(n) for n in lengths])
        positions = [128 * 4**i for i in range(6) if 128 * 4**i <= lengths[-1]]
        nll.set_xticks(positions, [format_tokens(n) for n in positions])
        drawing.from_zero(needles)
        nll.legend(loc="upper left")
