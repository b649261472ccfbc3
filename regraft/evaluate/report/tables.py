"""What people see: tables for the screen and the card, heat maps and curves, one HTML page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from regraft.evaluate.report.ruler_published import SOURCE, beside
from regraft.evaluate.report.summary import summary
from regraft.units import format_tokens

Cells = list[list[str]]
_FEW = 4  # tasks


def render(result: dict[str, Any]) -> list[RenderableType]:
    """The summary and the tables for the screen; of many tasks only what they come to."""
    found: list[RenderableType] = [Text(line) for line in summary(result)]
    for name, cells in tables(result, brief=len(result["tasks"]) > _FEW):
        table = Table(title=Text(name), title_justify="left")
        for number, head in enumerate(cells[0]):
            table.add_column(Text(head), justify="left" if number == 0 else "right")
        for row in cells[1:]:
            table.add_row(*map(Text, row))  # a model's name is no markup
        found.append(table)
    return found


def title(result: dict[str, Any]) -> str:
    return "What the graft carried over" if result["matrix"] else "What the models can do"


def lead(result: dict[str, Any]) -> list[str]:
    """The result in two or three sentences."""
    models = result["models"]
    adapters = result.get("fidelity", {"adapters": {}})["adapters"]
    shown = [
        f"{name}: {facts['place']}"
        + (f" with {adapters[name]['place']}" if name in adapters else "")
        + f" ({facts['context']})"
        for name, facts in models.items()
    ]
    lines = [*summary(result), "; ".join(shown) + "."]
    if result["matrix"] and result["overall"]:
        far = list(result["overall"]["donor"])[-1]
        task = "all" if "all" in result["ratios"] else result["overall_tasks"][0]
        ratios = result["ratios"][task][far]
        scored = {name: f"{scores[far]:.0%}" for name, scores in result["overall"].items()}
        lines.append(
            f"At {format_tokens(int(far))} tokens the recipient scores {scored['recipient']}, "
            f"with the donor's RoPE alone {scored['theta only']}, the donor {scored['donor']}, "
            f"the graft {scored['graft']}: transfer {_ratio(ratios['transfer graft'])}, of the "
            f"weights alone {_ratio(ratios['weight transfer graft'])}."
        )
    if "fidelity" in result:
        lines += _kept(result["fidelity"])
    return lines


def tables(result: dict[str, Any], *, brief: bool = False) -> list[tuple[str, Cells]]:
    """(title, cells with a head) of all there is to show, what it comes to first. brief: tasks
    beside each other, at each one's greatest length, and not one by one."""
    found: list[tuple[str, Cells]] = []
    single: list[tuple[str, Cells]] = []
    if brief:
        found.append(("Share answered, at the greatest length", _beside(result)))
    for task in result["tasks"]:
        if _lengths(result, task) and not brief:
            single.append((f"{task}: share answered", _task(result, task)))
            if "precision" in _first(result, task):
                single.append((f"{task}: precision / recall / F1", _detected(result, task)))
            if result["settings"]["judge"] and result["tasks"][task]["judged"]:
                single.append((f"{task}: share the judge agrees with", _judged(result, task)))
    together = result["overall_tasks"]
    if len(together) > 1:
        shown = ", ".join(together) if len(together) <= _FEW else f"{len(together)} tasks"
        found.append((f"Mean over {shown}", _overall(result)))
    if result["effective_length"]:
        found.append(("Effective length", _effective(result)))
    if published := beside(result):
        found.append(("RULER: published, not comparable item by item", published))
    for task, by_length in _all_first(result.get("ratios", {})):
        if not brief or task == "all":
            found.append((f"Carried over: {task}", _ratios(by_length)))
    for task, by_length in _all_first(result.get("fidelity", {"ratios": {}})["ratios"]):
        if not brief or task == "all":
            found.append((f"Extraction fidelity: {task}", _fidelity(by_length)))
    return [*found, *single, *_plain(result["measures"]), *_published(result["published"])]


def _all_first(ratios: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(ratios.items(), key=lambda entry: entry[0] != "all")


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader has to know to judge the numbers."""
    settings = result["settings"]
    lines = [
        f"{settings['items']} items a cell, the same for every model. Intervals are 95%: Wilson's "
        "of scores, paired bootstraps over items of ratios, Student's over texts of NLL.",
        "A twin is the same prompt without its evidence; what is scored there was "
        "guessed. Tables show the highest of its scores.",
        "Effective length: the greatest at which, and at all shorter ones, the mean over the tasks "
        "that fit in every length reaches 85.6% (RULER's threshold), or 85% of the model's "
        "own at the shortest length; none where that is within two standard errors of nothing.",
    ]
    if result["matrix"]:
        lines += [
            "'theta only' is the recipient's own weights with the donor's RoPE and length.",
            "Transfer is (graft - recipient) / (donor - recipient); weight transfer takes 'theta "
            "only' for the recipient; retention is graft / recipient. n/a: the denominator is "
            "within two standard errors of nothing.",
        ]
    lines += [
        f"{task} is scored by its suite's metric ({result['tasks'][task]['scorer']}). Texts longer "
        f"than the examined length are cut; left of their words are {shown}. Its twin has no text."
        for task, shown in _kept_words(result).items()
    ]
    if result["settings"]["judge"]:
        lines.append(
            f"The judge is {result['settings']['judge_model']}; it is asked yes or no about the "
            "answer and its references, not about the text. Its replies are in judge/; those "
            "that were neither do not count."
        )
    if any("key_share" in facts.get("perplexity", {}) for facts in result["measures"].values()):
        chosen = "the donor's choice" if "donor" in result["models"] else "each model's own choice"
        lines.append(
            "Key tokens gain more than 2 nats by context beyond the largest window and cost less "
            f"than 2 with it (LongPPL, arXiv 2410.23771): {chosen}."
        )
    if "fidelity" in result:
        lines.append(
            "Extraction fidelity is (base with adapter - base) / (donor - base), both under the "
            "donor's RoPE and length; 'donor, rank 16' is the base with the adapter of rank 16."
        )
    if any(name.startswith("niah") or name in ("vt", "cwe", "fwe") for name in result["tasks"]):
        lines.append(
            "The RULER tasks are built as NVIDIA builds them, with wording, words and haystack of "
            "our own: compare models within this page, not with published tables."
        )
    if beside(result):
        lines.append(
            f"Published: {SOURCE}; the mean of 13 tasks by its own harness, wording and haystack. "
            "The same model differs by ten points from harness to harness."
        )
    scorings = {facts["scoring"] for facts in result["tasks"].values()}
    if "teacher" in scorings:
        lines.append(
            "Teacher-forced: an answer counts if each of its tokens is the likeliest after all "
            "before it; several answers are expected in the order of the text."
        )
    return lines


def _task(result: dict[str, Any], task: str) -> Cells:
    lengths = _lengths(result, task)
    twins = result["settings"]["twins"]
    rows = [["model", *map(_tokens, lengths), *(["twins"] if twins else [])]]
    for model in result["models"]:
        cells = [result["cells"][model][task][length] for length in lengths]
        row = [model, *(_scored(cell) for cell in cells)]
        rows.append([*row, f"{max(cell['twin'] for cell in cells):.2f}"] if twins else row)
    return rows


def _scored(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{cell['score']:.2f} [{low:.2f}, {high:.2f}]"


def _judged(result: dict[str, Any], task: str) -> Cells:
    def shown(cell: dict[str, Any]) -> str:
        return "n/a" if cell["judge"] is None else f"{cell['judge']:.2f}"

    return _each(result, task, shown)


def _detected(result: dict[str, Any], task: str) -> Cells:
    def shown(cell: dict[str, Any]) -> str:
        return " / ".join(f"{cell[name]:.2f}" for name in ("precision", "recall", "f1"))

    return _each(result, task, shown)


def _each(result: dict[str, Any], task: str, shown: Callable[[dict[str, Any]], str]) -> Cells:
    """A row for each model, a column for each length."""
    lengths = _lengths(result, task)
    return [["model", *map(_tokens, lengths)]] + [
        [model, *(shown(result["cells"][model][task][length]) for length in lengths)]
        for model in result["models"]
    ]


def _first(result: dict[str, Any], task: str) -> dict[str, Any]:
    """A cell of the task's."""
    cells: dict[str, Any] = next(iter(result["cells"].values()))[task]
    return dict(next(iter(cells.values())))


def _beside(result: dict[str, Any]) -> Cells:
    """A row for each task, a column for each model."""
    models = list(result["models"])
    rows = [["task", "tokens", *models]]
    for task in result["tasks"]:
        for length in _lengths(result, task)[-1:]:
            scores = [result["cells"][model][task][length]["score"] for model in models]
            rows.append([task, _tokens(length), *(f"{score:.2f}" for score in scores)])
    return rows


def _lengths(result: dict[str, Any], task: str) -> list[str]:
    first = next(iter(result["models"]))
    return list(result["cells"].get(first, {}).get(task, {}))


def _kept_words(result: dict[str, Any]) -> dict[str, str]:
    """task -> '12% at 4k, 50% at 16k', of those whose texts may be cut."""
    found = {}
    for task, cells in next(iter(result["cells"].values()), {}).items():
        if any("kept" in cell for cell in cells.values()):
            shown = (f"{cell['kept']:.0%} at {_tokens(length)}" for length, cell in cells.items())
            found[task] = ", ".join(shown)
    return found


def _overall(result: dict[str, Any]) -> Cells:
    lengths = list(next(iter(result["overall"].values())))
    return [["model", *map(_tokens, lengths)]] + [
        [model, *(f"{scores[length]:.2f}" for length in lengths)]
        for model, scores in result["overall"].items()
    ]


def _effective(result: dict[str, Any]) -> Cells:
    def shown(length: int | None) -> str:
        return "none" if length is None else format_tokens(length)

    return [["model", "at 85.6%", "at 85% of its own"]] + [
        [model, shown(found["ruler"]), shown(found["own"])]
        for model, found in result["effective_length"].items()
    ]


def _ratios(by_length: dict[str, Any]) -> Cells:
    names = list(dict.fromkeys(name for found in by_length.values() for name in found))
    return [["tokens", *names]] + [
        [_tokens(length), *(_ratio(found[name]) if name in found else "" for name in names)]
        for length, found in by_length.items()
        if found
    ]


def _fidelity(by_length: dict[str, Any]) -> Cells:
    """A row for each adapter, a column for each length."""
    names = list(next(iter(by_length.values())))
    return [["model", *map(_tokens, by_length)]] + [
        [name, *(_ratio(found[name]) for found in by_length.values())] for name in names
    ]


def _kept(fidelity: dict[str, Any]) -> list[str]:
    """One sentence on what the adapters hold, at the greatest length of all tasks or the first."""
    ratios = fidelity["ratios"]
    if not ratios:
        return []
    task = "all" if "all" in ratios else next(iter(ratios))
    far, found = list(ratios[task].items())[-1]
    shown = "; ".join(f"{name.split(', ', 1)[1]}: {_ratio(found[name])}" for name in found)
    return [
        f"Of what the donor has over {fidelity['base']} at {_tokens(far)} tokens the adapters, on "
        f"the base that they were taken from, keep: {shown}."
    ]


def _plain(measures: dict[str, Any]) -> list[tuple[str, Cells]]:
    found: list[tuple[str, Cells]] = []
    nll = {name: facts["perplexity"] for name, facts in measures.items() if "perplexity" in facts}
    if nll:
        first = next(iter(nll.values()))
        for title, part in (
            ("NLL of plain text by position (nats)", "nll"),
            ("What context beyond the last tokens is worth (nats)", "gain"),
        ):
            if first[part]:
                rows = [[name, *_nats(facts, part)] for name, facts in nll.items()]
                head = ["model", *first[part], *(["mean"] if part == "nll" else [])]
                found.append((title, [head, *rows]))
    rows = [
        [name, f"{x['perplexity']:.2f}", f"{x['long_perplexity']:.2f}", f"{x['key_share']:.2%}"]
        for name, x in nll.items()
        if x.get("long_perplexity") is not None and x["perplexity"] is not None
    ]
    if rows:
        head = ["model", "perplexity", "of key tokens", "key tokens"]
        found.append(("LongPPL: perplexity of the tokens that need far context", [head, *rows]))
    drift = {name: facts["drift"] for name, facts in measures.items() if "drift" in facts}
    if drift:
        rows = [
            [name, f"{x['kl']:.4f}", f"{x['top1']:.1%}", f"{x['cosine']:.4f}"]
            for name, x in drift.items()
        ]
        head = ["model", "KL (nats)", "same first choice", "cosine"]
        found.append((f"Drift from {next(iter(drift))} on short text", [head, *rows]))
    return found


def _nats(facts: dict[str, Any], part: str) -> list[str]:
    """Nats of every position or window, with intervals over texts of the mean and of gains."""

    def shown(value: float, bounds: list[float] | None) -> str:
        return f"{value:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")

    intervals = facts["intervals"]
    if part == "gain":
        return [shown(value, intervals["gain"][name]) for name, value in facts["gain"].items()]
    return [*(f"{x:.3f}" for x in facts["nll"].values()), shown(facts["mean"], intervals["mean"])]


def _published(suites: dict[str, Any]) -> list[tuple[str, Cells]]:
    scores, found = suites["scores"], []
    if scores:
        tasks = list(next(iter(scores.values())))
        rows = [
            [name, *(f"{facts[task]['score']:.3f}" for task in tasks)]
            for name, facts in scores.items()
        ]
        found.append(("Published suites, by lm-eval", [["model", *tasks], *rows]))
    if suites["retention"]:
        rows = [
            [name, *(_ratio(facts[task]) for task in tasks)]
            for name, facts in suites["retention"].items()
        ]
        found.append(("Retention on them", [["model", *tasks], *rows]))
    return found


def _ratio(found: dict[str, Any] | None) -> str:
    if found is None:
        return "n/a"
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _tokens(length: str) -> str:
    return format_tokens(int(length))
