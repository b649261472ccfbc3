"""`regraft evaluate`: items made once, then one model after another, cell by cell.

A cell is a task at a length. Its items are made before any model is loaded and kept by hash, so
every model is shown the same. What a model answered goes to OUT/items/MODEL/TASK-LENGTH.jsonl as
soon as a cell is done; a killed run goes on at the first cell that is not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.errors import InputError
from regraft.units import format_tokens, parse_tokens

ROLES = ("recipient", "theta only", "donor", "graft", "recovered")


@dataclass(frozen=True)
class Settings:
    """What is measured, and on how much. `lengths` in tokens, answer included; `items` per cell;
    `texts` for perplexity and drift; `batch` in tokens, by default 2048 on a CPU, where more is
    slower, and 32768 on a GPU; `limit` to lm-eval's items."""

    suites: tuple[str, ...] = ("needle", "perplexity", "drift")
    lengths: tuple[int, ...] = ()
    items: int = 50
    haystack: str = "grammar"
    qa: tuple[str, ...] = ()
    needles: int = 1
    decoys: int = 0
    depths: int = 5
    sigmoid: bool = False
    scoring: str = "auto"
    twins: bool = True
    chat: bool = False
    texts: int = 8
    batch: int | None = None
    limit: int | None = None
    seed: int = 0


@dataclass
class _Work:
    """All that a run needs once its input is found good."""

    settings: Settings
    sources: list[Any]
    tasks: list[Any]
    measures: list[str]
    lengths: list[int]
    kit: Any
    own_length: int
    contexts: dict[str, Any] = field(default_factory=dict)


def evaluate(
    models: Sequence[str],
    out: str | Path,
    *,
    matrix: bool = False,
    suite: str = "needle,perplexity,drift",
    lengths: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Examine models and write result.json, figures and a page to `out`; the result.

    models: folders or Hub ids, 'name=place' to name one. With `matrix` the names are recipient,
    donor, graft and, if wanted, recovered; the recipient with only the donor's RoPE is added.
    lengths: such as '4k,8k'; by default the greatest context among the models (128k at most) and
    its half, quarter and eighth. Other settings: see `Settings`.

    Raises InputError, before any model is loaded, for what the user has to decide.
    """
    from regraft.checkpoint.sink import Staging, check_output
    from regraft.device import pick_device

    chosen = Settings(
        suites=tuple(part.strip() for part in suite.split(",") if part.strip()),
        lengths=tuple(sorted({parse_tokens(part) for part in (lengths or "").split(",") if part})),
        **settings,
    )
    where = pick_device(device)
    work = _prepare(list(models), chosen, matrix)
    places = [source.place for source in work.sources]
    if dry_run:
        check_output(Path(out), overwrite=overwrite, inputs=places)
        return {"plan": _plan(work)}
    job = json.dumps(
        {
            "evaluate": asdict(chosen),
            "models": {source.name: [source.fingerprint(), source.spec().to_json()]
                       for source in work.sources},
        },
        sort_keys=True,
    )  # fmt: skip
    with Staging(Path(out), job=job, overwrite=overwrite, resume=resume, inputs=places) as staging:
        items = _items(work, staging)
        found, plain = _examine(work, items, staging, where)
        result = json.loads(json.dumps(_result(work, items, found, plain, matrix)))
        _show(staging.folder, result)
        staging.publish()
    return dict(result)


def _prepare(models: list[str], settings: Settings, matrix: bool) -> _Work:
    from regraft.evaluate.corpora import open_corpus
    from regraft.evaluate.fitting import Prompter
    from regraft.evaluate.suites import MEASURES, choose
    from regraft.evaluate.tasks import Kit
    from regraft.evaluate.tasks.hiding import linear_depths, sigmoid_depths
    from regraft.evaluate.tasks.questions import read_quiz

    _check(settings)
    tasks, measures = choose(settings.suites, len(settings.qa))
    corpus = open_corpus(settings.haystack)
    quizzes = [read_quiz(path) for path in settings.qa]
    sources = _sources(models, matrix)
    contexts = {source.name: source.spec() for source in sources}
    tokenizer = _one_tokenizer(sources)
    depths = (sigmoid_depths if settings.sigmoid else linear_depths)(settings.depths)
    kit = Kit(
        Prompter(tokenizer, chat=settings.chat), corpus, seed=settings.seed,
        needles=settings.needles, decoys=settings.decoys, depths=depths, questions=quizzes,
    )  # fmt: skip
    plain = any(name in MEASURES for name in measures)
    if settings.haystack != "world" and (plain or any(task.haystack for task in tasks)):
        share = kit.prompter.unknown_share("".join(corpus.pieces("known", 50)))
        if share > 0.2:
            raise InputError(
                f"The models' tokenizer does not know {share:.0%} of the words of the haystack "
                f"{settings.haystack}; give --haystack world (with --suite toy) or a text of its "
                "own."
            )
    longest = max(spec.max_position_embeddings for spec in contexts.values())
    top = min(longest, 128 * 1024)
    lengths = list(settings.lengths) or [top // 8, top // 4, top // 2, top]
    for name, spec in contexts.items():
        if max(lengths) > spec.max_position_embeddings and (not matrix or name == "donor"):
            progress.warn(
                f"{name} is made for {format_tokens(spec.max_position_embeddings)} tokens and is "
                f"examined at up to {format_tokens(max(lengths))}."
            )
    own = contexts[sources[0].name].max_position_embeddings
    return _Work(settings, sources, tasks, measures, lengths, kit, own, contexts)


def _check(settings: Settings) -> None:
    for name, least in (
        ("items", 1), ("needles", 1), ("decoys", 0), ("depths", 1), ("texts", 1), ("batch", 1),
        ("limit", 1),
    ):  # fmt: skip
        if (given := getattr(settings, name)) is not None and given < least:
            raise InputError(f"--{name} {given} is too few; give {least} or more.")
    if settings.scoring not in ("auto", "teacher", "generate"):
        raise InputError(f"--scoring '{settings.scoring}' is not auto, teacher or generate.")


def _sources(models: list[str], matrix: bool) -> list[Any]:
    from regraft.evaluate.model import Source

    named: dict[str, str] = {}
    for text in models:
        name, sign, place = text.partition("=")
        if not sign:
            name, place = Path(text).name or text, text
        if name in named:
            raise InputError(f"Two models are called {name}; name them: one={place} ...")
        if not name or "/" in name:
            raise InputError(f"'{text}': a model's name cannot be '{name}'; give name=place.")
        named[name] = place
    if not named:
        raise InputError("Give at least one model: regraft evaluate MODEL -o OUT")
    if not matrix:
        return [Source(name, place) for name, place in named.items()]
    needed, known = {"recipient", "donor", "graft"}, {"recipient", "donor", "graft", "recovered"}
    if missing := sorted(needed - set(named)):
        raise InputError(f"--matrix needs {', '.join(f'{role}=MODEL' for role in missing)}.")
    if other := sorted(set(named) - known):
        raise InputError(f"--matrix knows recipient, donor, graft and recovered, not {other[0]}.")
    named["theta only"] = named["recipient"]
    context = Source("donor", named["donor"]).spec()
    return [
        Source(role, named[role], context if role == "theta only" else None)
        for role in ROLES
        if role in named
    ]


def _one_tokenizer(sources: list[Any]) -> Any:
    """The first model's, if all models have the same words for the same ids."""
    first = sources[0].tokenizer()
    vocabulary, seen = first.get_vocab(), {sources[0].place}
    for source in sources[1:]:
        if source.place in seen:
            continue
        seen.add(source.place)
        other = source.tokenizer().get_vocab()
        shared = vocabulary.keys() & other.keys()
        if len(shared) < 0.95 * len(vocabulary) or any(vocabulary[w] != other[w] for w in shared):
            raise InputError(
                f"{sources[0].place} and {source.place} have different tokenizers, so they cannot "
                "be shown the same tokens; evaluate them one by one."
            )
    return first


def _plan(work: _Work) -> dict[str, Any]:
    cells = len(work.tasks) * len(work.lengths)
    twins = 2 if work.settings.twins else 1
    tokens = twins * work.settings.items * len(work.tasks) * sum(work.lengths)
    return {
        "models": ", ".join(source.name for source in work.sources),
        "tasks": ", ".join(task.name for task in work.tasks) or "none",
        "measures": ", ".join(work.measures) or "none",
        "lengths": ", ".join(map(format_tokens, work.lengths)),
        "cells": cells * len(work.sources),
        "tokens to read": tokens * len(work.sources),
    }


def _items(work: _Work, staging: Any) -> dict[tuple[str, int], Path]:
    """The items of every cell, made or found; a task that does not fit in a length is left out
    there, with a warning."""
    from regraft.evaluate.fitting import TooShort

    made: dict[tuple[str, int], Path] = {}
    count = work.settings.items
    with progress.bar("prompts", total=len(work.tasks) * len(work.lengths)) as bar:
        for task in work.tasks:
            for length in work.lengths:
                path = staging.spool / f"{task.name}-{length}.jsonl"
                bar.advance(1, f"{task.name} {format_tokens(length)}")
                if staging.done(f"items {path.name}") is not None and path.is_file():
                    made[task.name, length] = path
                    continue
                try:
                    items = [task.item(work.kit, length, number) for number in range(count)]
                except TooShort as error:
                    progress.warn(f"{task.name} is left out at {format_tokens(length)}: {error}")
                    continue
                _write(path, [asdict(item) for item in items])
                staging.record(f"items {path.name}")
                made[task.name, length] = path
    if work.tasks and not made:
        raise InputError("No task fits in any of the lengths; raise --lengths.")
    return made


def _examine(
    work: _Work, items: dict[tuple[str, int], Path], staging: Any, device: Any
) -> tuple[dict[tuple[str, str, int], list[dict[str, Any]]], dict[str, Any]]:
    """(lines of every model, task and length; what measures without questions say of a model)."""
    tasks = {task.name: task for task in work.tasks}
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    plain: dict[str, Any] = {}
    reference: dict[str, Any] = {}
    with progress.bar("models", total=len(work.sources) * (len(items) + 1)) as bar:
        for source in work.sources:
            held: dict[str, Any] = {}

            def model(source: Any = source, held: dict[str, Any] = held) -> Any:
                if not held:
                    held["model"] = source.load(device)
                return held["model"]

            folder = staging.folder / "items" / source.name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            for (task, length), path in items.items():
                bar.advance(1, f"{source.name}: {task} {format_tokens(length)}")
                target = folder / path.name
                key = f"cell {source.name} {path.name}"
                if staging.done(key) is None or not target.is_file():
                    _write(target, _answers(work, tasks[task], path, model()))
                    staging.record(key)
                found[source.name, task, length] = _read(target)
            bar.advance(1, source.name)
            key = f"measures {source.name}"
            if work.measures and staging.done(key) is None:
                staging.record(key, **_measures(work, model(), source, reference, device))
            plain[source.name] = staging.done(key) or {}
    return found, plain


def _answers(work: _Work, task: Any, path: Path, model: Any) -> list[dict[str, Any]]:
    from regraft.evaluate.scoring import answer
    from regraft.evaluate.tasks import Item

    items = [Item(**entry) for entry in _read(path)]
    scoring: Any = task.scoring if work.settings.scoring == "auto" else work.settings.scoring
    answers = answer(
        model, work.kit.prompter, items, scoring, budget=_batch(work, model), room=task.room,
        twins=work.settings.twins,
    )  # fmt: skip
    return [
        {
            "number": item.number, "tokens": item.tokens, "unique": item.unique,
            "depth": item.facts.get("depth"), "on_grid": task.name == "needle",
            "scoring": scoring, **answered,
        }
        for item, answered in zip(items, answers, strict=True)
    ]  # fmt: skip


def _batch(work: _Work, model: Any) -> int:
    return work.settings.batch or (2048 if model.device.type == "cpu" else 32768)


def _measures(
    work: _Work, model: Any, source: Any, reference: dict[str, Any], device: Any
) -> dict[str, Any]:
    from regraft.evaluate import drift, perplexity, published
    from regraft.evaluate.published import PREFIX

    settings, kit = work.settings, work.kit
    found: dict[str, Any] = {}

    def rows(length: int) -> list[list[int]]:
        return perplexity.texts(kit.prompter, kit.haystack, length, settings.texts, settings.seed)

    if "perplexity" in work.measures:
        found["perplexity"] = perplexity.measure(
            model, rows(max(work.lengths)), _batch(work, model)
        )
    names = [name.removeprefix(PREFIX) for name in work.measures if name.startswith(PREFIX)]
    if names:
        found["lm-eval"] = published.measure(
            model, kit.prompter.tokenizer, names, settings.limit, settings.chat
        )
    if "drift" in work.measures:
        if not reference:
            first = work.sources[0]
            base = model if source is first else first.load(device)
            short = rows(min(work.own_length, 2048))
            reference["rows"] = drift.Reference(base, short)
        found["drift"] = drift.measure(model, reference["rows"])
    return found


def _result(
    work: _Work, items: dict[tuple[str, int], Path], found: Any, plain: dict[str, Any], matrix: bool
) -> dict[str, Any]:
    from regraft.adapters.evidence import versions
    from regraft.evaluate import published
    from regraft.evaluate.record import ratios, summarise

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
                "skill": task.skill, "scorer": task.scorer,
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
        result["ratios"] = ratios(found, work.tasks, names, work.own_length)
    return result


def _samples(items: dict[tuple[str, int], Path], found: Any, names: list[str]) -> list[Any]:
    """The first item of every task at its shortest length, with what each model made of it."""
    samples: dict[str, Any] = {}
    for (task, length), path in items.items():
        if task not in samples:
            first = _read(path)[0]
            samples[task] = {
                "task": task, "length": length, "prompt": first["prompt"], "twin": first["twin"],
                "references": first["references"],
                "answers": {name: found[name, task, length][0] for name in names},
            }  # fmt: skip
    return list(samples.values())


def _show(folder: Path, result: dict[str, Any]) -> None:
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    from regraft.evaluate.report import write_report

    write_report(folder, result)


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    part.rename(path)


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:  # not splitlines: prompts may hold U+2028
        return [json.loads(line) for line in file]
