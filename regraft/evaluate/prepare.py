"""What a run is to measure, checked before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.errors import InputError
from regraft.evaluate.answers.judge import Judge
from regraft.evaluate.answers.lm_eval import PREFIX
from regraft.evaluate.answers.model import Source
from regraft.evaluate.fidelity import Fidelity, adapted
from regraft.evaluate.prompts.haystack import open_corpus
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.suites import MEASURES, choose
from regraft.evaluate.tasks import Kit, Task
from regraft.evaluate.tasks.hiding import linear_depths, sigmoid_depths
from regraft.evaluate.tasks.needle import NEEDLE
from regraft.evaluate.tasks.needle import room as needle_room
from regraft.evaluate.tasks.quiz import read_quiz
from regraft.parallel import Mesh
from regraft.rope import ContextSpec
from regraft.units import format_tokens

ROLES = ("recipient", "theta only", "donor", "graft", "recovered")


@dataclass(frozen=True)
class Settings:
    """What is measured, and on how much. `lengths` in tokens, answer included; `items` per cell;
    `texts` for perplexity and drift; `batch` in tokens, by default 2048 on a CPU, where more is
    slower, and 32768 on a GPU; `limit` to lm-eval's items; `adapters` for extraction fidelity;
    `judge`, a URL, and `judge_model` for verdicts on free answers."""

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
    adapters: tuple[str, ...] = ()
    judge: str | None = None
    judge_model: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Work:
    """All that a run needs once its input is found good."""

    settings: Settings
    sources: list[Source]
    tasks: list[Task]
    measures: list[str]
    lengths: list[int]
    kit: Kit
    own_length: int  # the first model's context
    contexts: dict[str, ContextSpec]
    fidelity: Fidelity | None = None
    judge: Judge | None = None


def prepare(models: list[str], settings: Settings, matrix: bool) -> Work:
    """Open everything but the weights. Raises InputError for what the user has to decide."""
    _check(settings)
    tasks, measures = choose(settings.suites, len(settings.qa))
    tasks = [replace(task, room=needle_room(settings.needles)) if task is NEEDLE else task
             for task in tasks]  # fmt: skip
    if "needle" in {task.name for task in tasks} and settings.items < settings.depths:
        progress.warn(
            f"{settings.items} needle items stand at the first {settings.items} of "
            f"{settings.depths} depths alone; give --items {settings.depths} or more."
        )
    corpus = open_corpus(settings.haystack)
    quizzes = [read_quiz(path) for path in settings.qa]
    sources, fidelity = _sources(models, matrix, bool(settings.adapters)), None
    if settings.adapters:
        sources, fidelity = adapted(sources, settings.adapters)
    folders: dict[str, str] = {}
    for source in sources:
        if (other := folders.setdefault(source.folder, source.name)) != source.name:
            raise InputError(f"'{other}' and '{source.name}' are too much alike; rename one.")
    contexts = {source.name: source.spec() for source in sources}
    for source in sources:
        source.config()  # one model's context may not suit the other's architecture
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
    known = kit.prompter.ids(kit.prompter.wrap("Where?"))
    for source in sources:
        if max(known) >= (size := int(source.config().get("vocab_size", max(known) + 1))):
            raise InputError(
                f"{source.name} knows {size} tokens, and the prompts have number {max(known)} in "
                f"them, a token of {sources[0].name}'s own"
                f"{' chat template; leave --chat out' if settings.chat else ''}."
            )
    longest = max(spec.max_position_embeddings for spec in contexts.values())
    top = min(longest, 128 * 1024)
    lengths = list(settings.lengths) or [top // 8, top // 4, top // 2, top]
    for name, spec in contexts.items():
        told = name == "donor" or not (matrix or fidelity)
        if max(lengths) > spec.max_position_embeddings and told:
            progress.warn(
                f"{name} is made for {format_tokens(spec.max_position_embeddings)} tokens and is "
                f"examined at up to {format_tokens(max(lengths))}."
            )
    if measures and max(lengths) < 2:
        raise InputError("perplexity and drift need two tokens; raise --lengths.")
    own = contexts[sources[0].name].max_position_embeddings
    judge = _judge(settings, tasks)
    if judge is not None:
        settings = replace(settings, judge=judge.url)  # without secrets, as it stands in records
    return Work(settings, sources, tasks, measures, lengths, kit, own, contexts, fidelity, judge)


def refuse_shared(work: Work, mesh: Mesh) -> None:
    """Raise InputError for what several processes cannot do together."""
    asked = work.settings.scoring
    for task in work.tasks if mesh.context > 1 else ():
        if (task.scoring if asked == "auto" else asked) == "generate":
            raise InputError(
                f"{task.name} generates, and --context-parallel cuts prompts up between processes, "
                "which only scores them; leave it out, then each process has whole prompts, or "
                "give --scoring teacher."
            )
    if mesh.size > 1 and any(name.startswith(PREFIX) for name in work.measures):
        raise InputError("lm-eval's suites run in one process; start them without torchrun.")


def _check(settings: Settings) -> None:
    for name, least in (
        ("items", 1), ("needles", 1), ("decoys", 0), ("depths", 1), ("texts", 1), ("batch", 1),
        ("limit", 1),
    ):  # fmt: skip
        if (given := getattr(settings, name)) is not None and given < least:
            raise InputError(f"--{name} {given} is too few; give {least} or more.")
    if settings.scoring not in ("auto", "teacher", "generate"):
        raise InputError(f"--scoring '{settings.scoring}' is not auto, teacher or generate.")


def _judge(settings: Settings, tasks: list[Task]) -> Judge | None:
    """The judge, asked a first question. Raises InputError where it has nothing to do, or does not
    answer."""
    if settings.judge is None or settings.judge_model is None:
        if settings.judge or settings.judge_model:
            raise InputError("A judge needs both --judge URL and --judge-model NAME.")
        return None
    if settings.scoring == "teacher" or not any(task.judged for task in tasks):
        raise InputError(
            "--judge reads generated free answers, and none is asked for: choose qa_1, qa_hard_1, "
            "zeroscrolls:PATH or loogle:PATH, without --scoring teacher."
        )
    judge = Judge(settings.judge, settings.judge_model)
    judge.check()
    return judge


def _sources(models: list[str], matrix: bool, adapters: bool) -> list[Source]:
    named: dict[str, str] = {}
    for text in models:
        name, sign, place = text.partition("=")
        if not sign:
            path = Path(text)
            name, place = (path.resolve() if path.name in ("", "..") else path).name, text
        if name in named:
            raise InputError(f"Two models are called {name}; name them: one={place} ...")
        if name in ("", ".", "..") or "/" in name:
            raise InputError(f"'{text}': a model's name cannot be '{name}'; give name=place.")
        named[name] = place
    if not named:
        raise InputError("Give at least one model: regraft evaluate MODEL -o OUT")
    if not matrix:
        return [Source(name, place) for name, place in named.items()]
    needed, known = {"recipient", "donor", "graft"}, [role for role in ROLES if " " not in role]
    known += ["base"] if adapters else []
    if missing := sorted(needed - set(named)):
        raise InputError(f"--matrix needs {', '.join(f'{role}=MODEL' for role in missing)}.")
    if other := sorted(set(named) - set(known)):
        why = " without --adapter" if other[0] == "base" else ""
        raise InputError(
            f"--matrix knows {', '.join(known[:-1])} and {known[-1]}, not {other[0]}{why}."
        )
    named["theta only"] = named["recipient"]
    context = Source("donor", named["donor"]).spec()
    return [
        Source(role, named[role], context if role == "theta only" else None)
        for role in (*ROLES, "base")
        if role in named
    ]


def _one_tokenizer(sources: list[Source]) -> Any:
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
