"""`regraft evaluate`: items made once, then one model after another, cell by cell.

A cell is a task at a length. Its items are made before any model is loaded and kept by hash, so
every model is shown the same. What a model answered goes to OUT/items/MODEL/TASK-LENGTH.jsonl as
soon as a cell is done; a killed run goes on at the first cell that is not. Under torchrun the
processes share the batches of a cell (see `ranks`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import progress
from regraft.errors import InputError
from regraft.units import format_tokens, parse_tokens
from regraft.write import write_text

if TYPE_CHECKING:
    from regraft.evaluate.prepare import Settings, Work
    from regraft.evaluate.shared_output import Desk, Lines

_DRIFT = 8192  # positions at least


def evaluate_models(
    models: Sequence[str],
    out: str | Path,
    *,
    matrix: bool = False,
    suite: str = "needle,perplexity,drift",
    lengths: str | None = None,
    device: str = "auto",
    context_parallel: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Examine models and write result.json, figures and a page to `out`; the result, which of
    several processes the first alone has.

    models: folders or Hub ids, 'name=place' to name one. With `matrix` the names are recipient,
    donor, graft and, if wanted, recovered; the recipient with only the donor's RoPE is added.
    Settings' `adapters` are applied to the model called base, or to that which they were taken
    from, for their fidelity to the one called donor, also without `matrix`.
    lengths: such as '4k,8k'; by default the greatest context among the models (128k at most) and
    its half, quarter and eighth. context_parallel: so many processes share each prompt's tokens, as
    `regraft.parallel` cuts them; without it each process gets whole prompts. Other settings: see
    `prepare.Settings`.

    Raises InputError, before any model is loaded, for what the user has to decide.
    """
    from regraft.evaluate.answers.distributed import fall_silent, from_first, join_mesh
    from regraft.evaluate.cost import plan
    from regraft.evaluate.prepare import Settings, prepare, refuse_shared
    from regraft.evaluate.shared_output import Desk
    from regraft.job import Job

    fall_silent()
    chosen = Settings(
        suites=tuple(part.strip() for part in suite.split(",") if part.strip()),
        lengths=tuple(sorted({parse_tokens(part) for part in (lengths or "").split(",") if part})),
        **settings,
    )
    mesh = join_mesh(context_parallel, device)
    inputs = _inputs(chosen)
    job = from_first(
        mesh,
        lambda: Job(out, inputs=inputs, overwrite=overwrite, resume=resume, keep_refused=True),
    )
    work = prepare(list(models), chosen, matrix)
    from_first(mesh, lambda: job.add_inputs(str(source.place) for source in work.sources))
    refuse_shared(work, mesh)
    if dry_run:
        return {"plan": plan(work, mesh.device)}
    identity = {
        "evaluate": asdict(work.settings),
        "models": {source.name: [source.fingerprint(), source.spec().to_json()]
                   for source in work.sources},
        "fidelity": work.fidelity and asdict(work.fidelity),
    }  # fmt: skip
    with mesh.guard(), Desk.open(mesh, lambda: job.start(identity)) as desk:
        items = _items(work, desk)
        found, plain = _examine(work, items, desk)
        if desk.staging is None:
            return {}
        if work.judge:
            _judge(work, work.judge, items, found, desk.folder)
        result = json.loads(json.dumps(_result(work, items, found, plain, matrix), allow_nan=False))
        _show(desk.folder, result)
        desk.staging.publish()
    return dict(result)


def _inputs(settings: Settings) -> list[str]:
    """Every file and folder beside the models that an evaluation reads."""
    local = [name.partition(":")[2] for name in settings.suites if ":" in name]
    haystack = [] if settings.haystack in ("grammar", "code", "world") else [settings.haystack]
    return [*settings.adapters, *haystack, *settings.qa, *filter(None, local)]


def _items(work: Work, desk: Desk) -> dict[tuple[str, int], Path]:
    """The items of every cell, made or found; a task that does not fit in a length is left out
    there, with a warning."""
    from regraft.evaluate.answers.distributed import spread
    from regraft.evaluate.prompts.length import TooShort

    made: dict[tuple[str, int], Path] = {}
    count = work.settings.items
    with progress.bar("prompts", total=len(work.tasks) * len(work.lengths)) as bar:
        for task in work.tasks:
            for length in work.lengths:
                path = desk.spool / f"{task.name}-{length}.jsonl"
                bar.advance(1, f"{task.name} {format_tokens(length)}")
                if not desk.has(f"items {path.name}", path):
                    few = range(min(count, task.most or count))
                    make = partial(task.item, work.kit, length)
                    try:
                        items = spread(desk.mesh, few, make)
                    except TooShort as error:
                        progress.warn(
                            f"{task.name} is left out at {format_tokens(length)}: {error}"
                        )
                        continue
                    desk.write(f"items {path.name}", path, [asdict(item) for item in items])
                made[task.name, length] = path
    if work.tasks and not made:
        raise InputError("No task fits in any of the lengths; raise --lengths.")
    return made


def _examine(
    work: Work, items: dict[tuple[str, int], Path], desk: Desk
) -> tuple[dict[tuple[str, str, int], list[dict[str, Any]]], dict[str, Any]]:
    """(lines of every model, task and length; what measures without questions say of a model),
    in all processes."""
    from regraft.evaluate.fidelity import merged

    tasks = {task.name: task for task in work.tasks}
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    plain: dict[str, Any] = {}
    reference: dict[str, Any] = {"keys": _key_tokens(work, desk)}
    with progress.bar("models", total=len(work.sources) * (len(items) + 1)) as bar:
        for source in work.sources:
            held: dict[str, Any] = {}

            def model(source: Any = source, held: dict[str, Any] = held) -> Any:
                if not held:
                    with merged(source, desk.spool, desk.mesh) as ready:
                        held["model"] = ready.load(desk.mesh.device, desk.mesh)
                return held["model"]

            for (task, length), path in items.items():
                bar.advance(1, f"{source.name}: {task} {format_tokens(length)}")
                target = desk.folder / "items" / source.folder / path.name
                key = f"cell {source.name} {path.name}"
                if not desk.has(key, target):
                    asked = desk.read(path)
                    desk.write(key, target, _answers(work, tasks[task], asked, model()))
                found[source.name, task, length] = desk.read(target)
            bar.advance(1, source.name)
            key = f"measures {source.name}"
            if work.measures and desk.facts(key) is None:
                desk.note(key, **_measures(work, model(), source, reference))
            plain[source.name] = desk.facts(key) or {}
    return found, plain


def _judge(
    work: Work, judge: Any, items: dict[tuple[str, int], Path], found: Any, folder: Path
) -> None:
    """Add the judge's verdicts to the lines of free answers."""
    from regraft.evaluate.answers.judge import examine
    from regraft.evaluate.shared_output import read_lines

    free = [task.name for task in work.tasks if task.judged]
    cells = [(source, cell) for source in work.sources for cell in items if cell[0] in free]
    with progress.bar("judge", total=len(cells)) as bar:
        for source, cell in cells:
            bar.advance(1, f"{source.name}: {cell[0]} {format_tokens(cell[1])}")
            key, asked = (source.name, *cell), items[cell]
            path = folder / "judge" / source.folder / asked.name
            found[key] = examine(judge, read_lines(asked), found[key], path)


def _answers(work: Work, task: Any, asked: Lines, model: Any) -> list[dict[str, Any]]:
    from regraft.evaluate.answers.scoring import answer
    from regraft.evaluate.tasks import Item

    items = [Item(**entry) for entry in asked]
    scoring: Any = task.scoring if work.settings.scoring == "auto" else work.settings.scoring
    answers = answer(
        model, work.kit.prompter, items, scoring, budget=_batch(work, model, scoring),
        room=task.room, twins=work.settings.twins,
    )  # fmt: skip
    return [
        {
            "number": item.number, "tokens": item.tokens, "unique": item.unique,
            "depth": item.facts.get("depth"), "on_grid": task.name == "needle",
            **({"kept": item.facts["kept"]} if "kept" in item.facts else {}),
            "scoring": scoring, **answered,
        }
        for item, answered in zip(items, answers, strict=True)
    ]  # fmt: skip


def _batch(work: Work, model: Any, scoring: str = "teacher") -> int:
    """Tokens. On a CPU small batches keep the caches warm, but a generated token costs as much for
    eight prompts as for one."""
    few = 16384 if scoring == "generate" else 2048
    return work.settings.batch or (few if model.device.type == "cpu" else 32768)


def _texts(work: Work, length: int, count: int) -> list[list[int]]:
    from regraft.evaluate.answers import perplexity
    from regraft.evaluate.prompts.length import Prompter

    kit = work.kit
    plain = Prompter(kit.prompter.tokenizer)  # no turn of a chat, so it starts as a text does
    return perplexity.texts(plain, kit.haystack, length, count, work.settings.seed)


def _key_tokens(work: Work, desk: Desk) -> Any:
    """The donor's choice of key tokens for all models, see `perplexity`; None without a donor."""
    from regraft.evaluate.answers import perplexity

    donors = [source for source in work.sources if source.name == "donor"]
    if "perplexity" not in work.measures or not donors:
        return None
    if desk.facts("key tokens") is None:
        model = donors[0].load(desk.mesh.device, desk.mesh)
        rows = _texts(work, max(work.lengths), work.settings.texts)
        desk.note("key tokens", rows=perplexity.key_tokens(model, rows, _batch(work, model)))
    return (desk.facts("key tokens") or {})["rows"]


def _measures(work: Work, model: Any, source: Any, reference: dict[str, Any]) -> dict[str, Any]:
    from regraft.evaluate.answers import drift, perplexity
    from regraft.evaluate.answers import lm_eval as published
    from regraft.evaluate.answers.lm_eval import PREFIX

    settings, kit = work.settings, work.kit
    found: dict[str, Any] = {}
    if "perplexity" in work.measures:
        found["perplexity"] = perplexity.measure(
            model, _texts(work, max(work.lengths), settings.texts), _batch(work, model),
            reference["keys"],
        )  # fmt: skip
    names = [name.removeprefix(PREFIX) for name in work.measures if name.startswith(PREFIX)]
    if names:
        found["lm-eval"] = published.measure(
            model, kit.prompter.tokenizer, names, settings.limit, settings.chat
        )
    if "drift" in work.measures:
        if "rows" not in reference:
            first = work.sources[0]
            base = model if source is first else first.load(model.device, model.mesh)
            short = min(work.own_length, 2048)
            count = max(settings.texts, _DRIFT // short)
            reference["rows"] = drift.Reference(base, _texts(work, short, count))
        found["drift"] = drift.measure(model, reference["rows"])
    return found


def _result(
    work: Work, items: dict[tuple[str, int], Path], found: Any, plain: dict[str, Any], matrix: bool
) -> dict[str, Any]:
    from regraft.evaluate.answers import lm_eval as published
    from regraft.evaluate.prepare import ROLES
    from regraft.evaluate.report.record import kept, ratios, summarise
    from regraft.record import versions

    names = [source.name for source in work.sources]
    plain = {name: dict(facts) for name, facts in plain.items()}
    suites = published.summarise(plain, matrix)
    result = {
        "schema_version": 1,
        "kind": "evaluation",
        "matrix": matrix,
        "models": {
            source.name: {
                "place": str(source.place),
                "fingerprint": source.fingerprint(),
                "context": work.contexts[source.name].describe(),
                "context_length": work.contexts[source.name].max_position_embeddings,
            }
            for source in work.sources
        },
        "settings": {**asdict(work.settings), "lengths": work.lengths},
        "tasks": {
            task.name: {
                "skill": task.skill, "scorer": task.scorer, "judged": task.judged,
                "scoring": task.scoring if work.settings.scoring == "auto"
                else work.settings.scoring,
            }
            for task in work.tasks
        },
        **summarise(found, work.tasks, names),
        "measures": plain,
        "published": suites,
        "samples": _samples(items, found, names),
        "versions": versions(),
    }  # fmt: skip
    if matrix:
        roles = [name for name in names if name in ROLES]
        result["ratios"] = ratios(found, work.tasks, roles, work.own_length)
    if work.fidelity:
        facts = asdict(work.fidelity)
        by_task = kept(found, work.tasks, facts["base"], facts["donor"], list(facts["adapters"]))
        result["fidelity"] = {**facts, "ratios": by_task}
    return result


def _samples(items: dict[tuple[str, int], Path], found: Any, names: list[str]) -> list[Any]:
    """The first item of every task at its shortest length, with what each model made of it."""
    from regraft.evaluate.shared_output import read_lines

    samples: dict[str, Any] = {}
    for (task, length), path in items.items():
        if task not in samples:
            first = read_lines(path)[0]
            samples[task] = {
                "task": task, "length": length, "prompt": first["prompt"], "twin": first["twin"],
                "references": first["references"],
                "answers": {name: found[name, task, length][0] for name in names},
            }  # fmt: skip
    return list(samples.values())


def _show(folder: Path, result: dict[str, Any]) -> None:
    write_text(folder / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    from regraft.evaluate.report.files import write_report

    with progress.stage("Writing the report"):
        write_report(folder, result)
