"""The suites: which tasks and measures each name of --suite selects."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.errors import InputError
from regraft.evaluate.answers.lm_eval import PREFIX, check
from regraft.evaluate.local import READERS
from regraft.evaluate.tasks import Task
from regraft.evaluate.tasks.beyond import ENTITIES, GRAPH, MANY_SHOT
from regraft.evaluate.tasks.documents import ARCHIVE
from regraft.evaluate.tasks.latent import LATENT
from regraft.evaluate.tasks.lists import LATENT_LIST
from regraft.evaluate.tasks.needle import NEEDLE
from regraft.evaluate.tasks.notes import NOTES, SHOUT
from regraft.evaluate.tasks.questions import CLEAN_QUESTIONS, HARD_QUESTIONS
from regraft.evaluate.tasks.ruler.needles import NEEDLES
from regraft.evaluate.tasks.ruler.questions import QUESTIONS
from regraft.evaluate.tasks.ruler.tracking import TRACKING
from regraft.evaluate.tasks.ruler.words import COMMON_WORDS, FREQUENT_WORDS
from regraft.plugins import TASKS as PLUGIN_TASKS
from regraft.plugins import load_plugins

RULER = [*NEEDLES, TRACKING, COMMON_WORDS, FREQUENT_WORDS, *QUESTIONS]
BEYOND = [LATENT, LATENT_LIST, ARCHIVE, MANY_SHOT, ENTITIES, GRAPH, *HARD_QUESTIONS]
TASKS = {task.name: task for task in (NEEDLE, *RULER, *BEYOND, *CLEAN_QUESTIONS, NOTES, SHOUT)}
SUITES: dict[str, list[Task]] = {
    "needle": [NEEDLE],
    "ruler": RULER,
    "beyond": BEYOND,
    "toy": [NOTES, SHOUT],
}
MEASURES = ("perplexity", "drift")  # without questions


def all_tasks() -> dict[str, Task]:
    """Every task by name, those of plug-ins included. Raises InputError for a plug-in that is no
    task or has the name of another."""
    tasks = dict(TASKS)
    for package, task in load_plugins(PLUGIN_TASKS):
        if not isinstance(task, Task):
            raise InputError(
                f"The package {package} registers a {type(task).__name__} as a task of regraft, "
                "which must be a regraft.evaluate.tasks.Task; update or uninstall it."
            )
        if task.name in {*tasks, *SUITES, *MEASURES}:
            raise InputError(
                f"The package {package} registers the task {task.name}, which exists already; "
                "update or uninstall it."
            )
        tasks[task.name] = task
    return tasks


def choose(names: Sequence[str], quizzes: int) -> tuple[list[Task], list[str]]:
    """(tasks, measures) selected by names of suites, tasks and measures.

    quizzes: the number of --qa files.

    A suite omits question tasks without a --qa file. lm-eval's tasks count as measures. Raises
    InputError for an unknown name, for a question task without its file, and for files that are not
    in a suite's layout.
    """
    known_tasks = all_tasks()
    tasks: dict[str, Task] = {}
    measures: list[str] = []
    for name in names:
        if name in MEASURES:
            measures.append(name)
        elif name in SUITES:
            tasks |= {task.name: task for task in SUITES[name] if _has_file(task, quizzes)}
        elif name in known_tasks:
            if not _has_file(known_tasks[name], quizzes):
                raise InputError(f"{name} takes its questions from a file: give --qa FILE.")
            tasks[name] = known_tasks[name]
        elif name.startswith(PREFIX):
            measures.append(name)
        elif name.split(":")[0] in READERS and ":" in name:
            suite, _, path = name.partition(":")
            tasks |= {task.name: task for task in READERS[suite](path)}
        else:
            local = [f"{suite}:PATH" for suite in READERS]
            known = dict.fromkeys((*SUITES, *MEASURES, f"{PREFIX}TASK", *local, *known_tasks))
            raise InputError(f"--suite '{name}' is unknown; choose from {', '.join(known)}.")
    if not tasks and not measures:
        raise InputError("--suite names nothing to measure; give needle, for example.")
    check([name.removeprefix(PREFIX) for name in measures if name.startswith(PREFIX)])
    return list(tasks.values()), measures


def _has_file(task: Task, quizzes: int) -> bool:
    return not any(task in kind[quizzes:] for kind in (QUESTIONS, CLEAN_QUESTIONS, HARD_QUESTIONS))
