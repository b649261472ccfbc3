"""Check the input of an evaluation and open everything but the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from regraft import progress
from regraft.checkpoint.hf.tokenizer import open_tokenizer
from regraft.data.generate.hiding import linear_depths, sigmoid_depths
from regraft.errors import InputError
from regraft.evaluate.answers.judge import Judge
from regraft.evaluate.answers.lm_eval import PREFIX
from regraft.evaluate.answers.model import Source
from regraft.evaluate.answers.served.source import Address, ServedSource, parse_address
from regraft.evaluate.fidelity import Fidelity, add_adapters, graft_sources
from regraft.evaluate.haystack_check import check_size, check_words
from regraft.evaluate.prompts.haystack import open_corpus
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.settings import Settings
from regraft.evaluate.suites import MEASURES, all_tasks, choose
from regraft.evaluate.tasks import Kit, Scoring, Task
from regraft.evaluate.tasks.needle import NEEDLE, answer_tokens
from regraft.evaluate.tasks.quiz import read_quiz
from regraft.parallel import Mesh
from regraft.rope import ContextSpec
from regraft.units import format_tokens

ROLES = ("recipient", "theta only", "donor", "graft", "recovered")
SERVED_ROLES = ("graft", "recovered")  # which a served model may have in a matrix
Evaluated = Source | ServedSource


@dataclass(frozen=True)
class Work:
    """An evaluation whose input has been checked. sources: a served one comes last. own_length: the
    first model's context; contexts: of all that are not served."""

    settings: Settings
    sources: list[Evaluated]
    tasks: list[Task]
    measures: list[str]
    lengths: list[int]
    kit: Kit
    own_length: int
    contexts: dict[str, ContextSpec]
    fidelity: Fidelity | None = None
    judge: Judge | None = None

    def scoring(self, task: Task) -> Scoring:
        """How the answers to a task are scored."""
        return _scoring(self.settings, task)


def prepare(models: list[str], settings: Settings, matrix: bool) -> Work:
    """Open everything but the weights. Raises InputError for wrong arguments and broken input."""
    settings.validate()
    address = parse_address(settings)
    tasks, measures = choose(settings.suites, len(settings.qa))
    needle = replace(NEEDLE, answer_tokens=answer_tokens(settings.needles))
    tasks = [needle if task is NEEDLE else task for task in tasks]
    if "needle" in {task.name for task in tasks} and settings.items < settings.depths:
        progress.warn(
            f"{settings.items} needle items cover only the first {settings.items} of "
            f"{settings.depths} depths; give --items {settings.depths} or more."
        )
    if settings.questions_per_text > 1:
        _check_groups(tasks)
    corpus = open_corpus(settings.haystack)
    quizzes = [read_quiz(path) for path in settings.qa]
    sources = _sources(models, matrix, bool(settings.adapters), bool(settings.grafts), address)
    sources += graft_sources(sources[0], settings.grafts) if settings.grafts else []
    fidelity = None
    if settings.adapters:
        sources, fidelity = add_adapters(sources, settings.adapters)
    _check_folders([*sources, address] if address else sources)
    contexts = {source.name: source.spec() for source in sources}
    for source in sources:
        source.config()  # one model's context may not fit another's architecture
    depths = (sigmoid_depths if settings.sigmoid else linear_depths)(settings.depths)
    kit = Kit(
        Prompter(_common_tokenizer(sources, settings), chat=settings.chat), corpus,
        seed=settings.seed,
        needles=settings.needles, decoys=settings.decoys, depths=depths, questions=quizzes,
    )  # fmt: skip
    reads_haystack = any(name in MEASURES for name in measures) or any(
        task.haystack for task in tasks
    )
    if settings.haystack != "world" and reads_haystack:
        check_words(kit, settings.haystack)
    _check_vocabularies(sources, kit, settings.chat)
    limit = address.find() if address else None
    lengths = list(settings.lengths) or _lengths(contexts, limit)
    if address and limit is not None and limit < max(lengths):
        raise InputError(
            f"{address.name} is served with a context of {limit} tokens, and --lengths has "
            f"{max(lengths)}; lower --lengths or serve it with a longer one."
        )
    for name, spec in contexts.items():
        expected = matrix or fidelity  # models other than the donor are short of context there
        if max(lengths) > spec.max_position_embeddings and (name == "donor" or not expected):
            progress.warn(
                f"{name} is made for {format_tokens(spec.max_position_embeddings)} tokens and is "
                f"evaluated at up to {format_tokens(max(lengths))}."
            )
    if measures and max(lengths) < 2:
        raise InputError("perplexity and drift need two tokens; raise --lengths.")
    own = contexts[sources[0].name].max_position_embeddings if sources else limit or max(lengths)
    check_size(kit, tasks, measures, max(lengths), own)
    evaluated: list[Evaluated] = [*sources]
    if address is not None:
        scorings = {task.name: _scoring(settings, task) for task in tasks}
        served = address.serve(
            kit.prompter, _example(kit, settings), scorings, measures, limit, max(lengths)
        )
        evaluated.append(served)
        if not sources:
            tasks = [task for task in tasks if task.name not in served.unsupported]
            measures = [name for name in measures if name not in served.unsupported]
        if matrix and served.name in SERVED_ROLES and {*scorings} & {*served.unsupported}:
            raise InputError(
                f"The {served.name} of a matrix answers every task, and {served.location} gives no "
                "log-probabilities; give --scoring generate."
            )
        settings = replace(settings, endpoint=address.endpoint.masked_url)
    judge = _judge(settings, tasks)
    if judge is not None:
        settings = replace(settings, judge=judge.url)  # without secrets, since it is recorded
    return Work(settings, evaluated, tasks, measures, lengths, kit, own, contexts, fidelity, judge)


def _check_groups(tasks: list[Task]) -> None:
    """Warn of tasks that have one question for each text. Raises InputError if all have."""
    if alone := [task.name for task in tasks if task.make_group is None]:
        able = ", ".join(task.name for task in all_tasks().values() if task.make_group)
        if len(alone) == len(tasks):
            raise InputError(f"--questions-per-text is for {able}; choose one of them by --suite.")
        progress.warn(f"{', '.join(alone)}: one question for each text; several have {able}.")


def refuse_unsupported_parallelism(work: Work, mesh: Mesh) -> None:
    """Raises InputError for what does not work in several processes."""
    for task in work.tasks if mesh.context > 1 else ():
        if work.scoring(task) == "generate":
            raise InputError(
                f"{task.name} generates, and --context-parallel splits prompts between processes, "
                "which can only score them; leave --context-parallel out, so that each process "
                "gets whole prompts, or give --scoring teacher."
            )
    if mesh.size > 1 and isinstance(work.sources[-1], ServedSource):
        raise InputError("One process asks an --endpoint; start without torchrun.")
    if mesh.size > 1 and any(name.startswith(PREFIX) for name in work.measures):
        raise InputError("lm-eval's suites run in one process; start them without torchrun.")


def _scoring(settings: Settings, task: Task) -> Scoring:
    chosen = settings.scoring
    return task.scoring if chosen == "auto" else cast(Scoring, chosen)


def _lengths(contexts: dict[str, ContextSpec], limit: int | None) -> list[int]:
    """The greatest context of the models and its half, quarter and eighth. limit: that of a served
    model, for an evaluation that has no others."""
    known = [spec.max_position_embeddings for spec in contexts.values()]
    if not known and limit is None:
        raise InputError("The endpoint does not state its context length; give --lengths.")
    longest = min(max(known or [limit or 0]), 128 * 1024)
    return [longest // 8, longest // 4, longest // 2, longest]


def _example(kit: Kit, settings: Settings) -> str:
    """A short prompt with the beginning of its answer."""
    corpus = kit.haystack if settings.haystack == "world" else open_corpus("grammar")
    *text, last = corpus.pieces("endpoint", 4)
    return kit.prompter.wrap("".join(text).rstrip(), f" {last.split()[0]}")


def _check_folders(sources: Sequence[Source | Address]) -> None:
    """Raises InputError if two models' answers would have the same folder."""
    folders: dict[str, str] = {}
    for source in sources:
        if (other := folders.setdefault(source.folder, source.name)) != source.name:
            raise InputError(f"'{other}' and '{source.name}' are too similar; rename one.")


def _check_vocabularies(sources: list[Source], kit: Kit, chat: bool) -> None:
    """Raises InputError if a model lacks a token that the prompts contain."""
    largest = max(kit.prompter.ids(kit.prompter.wrap("Where?")))
    for source in sources:
        if largest >= (size := int(source.config().get("vocab_size", largest + 1))):
            raise InputError(
                f"{source.name} has {size} tokens, and the prompts contain token {largest}, which "
                f"only {sources[0].name} has"
                f"{' (of its chat template; leave --chat out)' if chat else ''}."
            )


def _judge(settings: Settings, tasks: list[Task]) -> Judge | None:
    """The judge, after a test question. Raises InputError if it has nothing to judge or does not
    answer."""
    if settings.judge is None or settings.judge_model is None:
        if settings.judge or settings.judge_model:
            raise InputError("A judge needs both --judge URL and --judge-model NAME.")
        return None
    if settings.scoring == "teacher" or not any(task.judged for task in tasks):
        raise InputError(
            "--judge reads generated free answers, and no chosen task has any; give qa_1, "
            "qa_hard_1, zeroscrolls:PATH or loogle:PATH, without --scoring teacher."
        )
    judge = Judge(settings.judge, settings.judge_model)
    judge.check()
    return judge


def _sources(
    models: list[str], matrix: bool, adapters: bool, grafts: bool, address: Address | None
) -> list[Source]:
    """The models that are not served."""
    named: dict[str, str] = {}
    for text in models:
        name, sign, location = text.partition("=")
        if not sign:
            path = Path(text)
            name, location = (path.resolve() if path.name in ("", "..") else path).name, text
        if name in named:
            raise InputError(f"Two models are called {name}; name them: one={location} ...")
        if name in ("", ".", "..") or "/" in name:
            raise InputError(f"'{text}': a model's name cannot be '{name}'; give name=MODEL.")
        named[name] = location
    if address is not None and address.name in named:
        raise InputError(
            f"A local and a served model are called {address.name}; name the served one: "
            "--endpoint-model one=NAME."
        )
    if not named and address is None:
        raise InputError("Give at least one model or an --endpoint: regraft evaluate MODEL -o OUT")
    if not matrix:
        return [Source(name, location) for name, location in named.items()]
    served = {address.name} if address else set()
    needed = {"recipient", "donor"} if grafts else {"recipient", "donor", "graft"}
    known = [role for role in ROLES if " " not in role]
    known += ["base"] if adapters else []
    if missing := sorted(needed - set(named) - served):
        raise InputError(f"--matrix needs {', '.join(f'{role}=MODEL' for role in missing)}.")
    if other := sorted(set(named) - set(known)):
        why = " without --adapter" if other[0] == "base" else ""
        raise InputError(
            f"--matrix knows {', '.join(known[:-1])} and {known[-1]}, not {other[0]}{why}."
        )
    if role := sorted(served & {*ROLES, "base"} - {*SERVED_ROLES}):
        raise InputError(f"The {role[0]} of a --matrix must be a local model, not a served one.")
    named["theta only"] = named["recipient"]
    context = Source("donor", named["donor"]).spec()
    return [
        Source(role, named[role], context if role == "theta only" else None)
        for role in (*ROLES, "base")
        if role in named
    ]


def _common_tokenizer(sources: list[Source], settings: Settings) -> Any:
    """The first model's tokenizer, or that of the settings. Raises InputError if there is none, and
    if another model's is different."""
    tokenizers = {source.location: source.tokenizer for source in sources}
    if settings.tokenizer is not None:
        tokenizers.setdefault(settings.tokenizer, partial(open_tokenizer, settings.tokenizer))
    if not tokenizers:
        raise InputError(
            "Tokens are counted by the tokenizer of a local model, and there is none; give the "
            "served model's as --tokenizer FOLDER."
        )
    location, *others = tokenizers
    first = tokenizers[location]()
    vocabulary = first.get_vocab()
    for name in others:
        other = tokenizers[name]().get_vocab()
        shared = vocabulary.keys() & other.keys()
        if len(shared) < 0.95 * len(vocabulary) or any(vocabulary[w] != other[w] for w in shared):
            raise InputError(
                f"{location} and {name} have different tokenizers, so "
                "they cannot be given the same tokens; evaluate them one by one."
            )
    return first
