"""The cells of an evaluation: their items, every model's answers, the judge's verdicts.

Each step skips what an interrupted run has already written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from regraft import progress
from regraft.errors import InputError
from regraft.evaluate.answers.distributed import map_over_processes
from regraft.evaluate.answers.judge import add_verdicts
from regraft.evaluate.answers.scoring import Answerer, answer
from regraft.evaluate.answers.served.source import ServedSource
from regraft.evaluate.fidelity import merged
from regraft.evaluate.measures import Measurer, batch_tokens
from regraft.evaluate.prepare import Evaluated, Work
from regraft.evaluate.prompts.length import TooShort
from regraft.evaluate.result import Answer, Measures, parse_answers
from regraft.evaluate.shared_output import SharedOutput, read_lines
from regraft.evaluate.tasks import Item, Task
from regraft.records import to_json
from regraft.units import format_tokens

ItemFiles = dict[tuple[str, int], Path]  # by (task, length)
Answers = dict[tuple[str, str, int], list[Answer]]  # by (model, task, length)


def make_items(work: Work, output: SharedOutput) -> ItemFiles:
    """Write the items of every task and length.

    A task that does not fit in a length is left out there, with a warning. Raises InputError if
    nothing fits.
    """
    files: ItemFiles = {}
    count = work.settings.items
    with progress.bar("prompts", total=len(work.tasks) * len(work.lengths)) as bar:
        for task in work.tasks:
            for length in work.lengths:
                path = output.spool / f"{task.name}-{length}.jsonl"
                bar.advance(1, f"{task.name} {format_tokens(length)}")
                if not output.has(f"items {path.name}", path):
                    numbers = range(min(count, task.max_items or count))
                    make = partial(task.item, work.kit, length)
                    try:
                        items = map_over_processes(output.mesh, numbers, make)
                    except TooShort as error:
                        progress.warn(
                            f"{task.name} is left out at {format_tokens(length)}: {error}"
                        )
                        continue
                    output.write(f"items {path.name}", path, [asdict(item) for item in items])
                files[task.name, length] = path
    if work.tasks and not files:
        raise InputError("No task fits in any of the lengths; raise --lengths.")
    return files


def answer_items(
    work: Work, files: ItemFiles, output: SharedOutput
) -> tuple[Answers, dict[str, Measures]]:
    """Every model's answers and measures, in all processes. A model is loaded when its first
    unfinished cell needs it."""
    tasks = {task.name: task for task in work.tasks}
    answers: Answers = {}
    measures: dict[str, Measures] = {}
    measurer = Measurer(work, output)
    with progress.bar("models", total=len(work.sources) * (len(files) + 1)) as bar:
        for source in work.sources:
            model = _LazyModel(work, source, output, lambda text: bar.advance(0, text))
            for (task, length), path in files.items():
                model.label = f"{source.name}: {task} {format_tokens(length)}"
                bar.advance(1, model.label)
                if task in source.not_asked:
                    continue
                target = output.folder / "items" / source.folder / path.name
                key = f"cell {source.name} {path.name}"
                if not output.has(key, target):
                    items = [Item.from_json(line) for line in output.read(path)]
                    lines = _answer_cell(work, tasks[task], items, model.get())
                    output.write(key, target, [to_json(line) for line in lines])
                answers[source.name, task, length] = parse_answers(output.read(target))
            model.label = source.name
            bar.advance(1, model.label)
            measures[source.name] = measurer.measure_once(source, model.get)
    return answers, measures


def judge_answers(work: Work, files: ItemFiles, answers: Answers, folder: Path) -> None:
    """Add the judge's verdicts to the free answers among `answers`, if there is a judge."""
    if work.judge is None:
        return
    free = [task.name for task in work.tasks if task.judged]
    cells = [(source, cell) for source in work.sources for cell in files if cell[0] in free]
    with progress.bar("judge", total=len(cells)) as bar:
        for source, (task, length) in cells:
            bar.advance(1, f"{source.name}: {task} {format_tokens(length)}")
            file, key = files[task, length], (source.name, task, length)
            items = [Item.from_json(line) for line in read_lines(file)]
            path = folder / "judge" / source.folder / file.name
            answers[key] = add_verdicts(work.judge, items, answers[key], path)


class _LazyModel:
    """A model that is loaded, with its adapter merged, when it is first used. show: displays how
    many answers of a served one are there, behind `label`."""

    def __init__(
        self, work: Work, source: Evaluated, output: SharedOutput, show: Callable[[str], None]
    ) -> None:
        self._work, self._source, self._output, self._show = work, source, output, show
        self._model: Answerer | None = None
        self.label = source.name

    def get(self) -> Answerer:
        """The model, in all processes. Collective."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def _load(self) -> Answerer:
        source, output = self._source, self._output
        if isinstance(source, ServedSource):
            return source.connect(self._work.kit.prompter, output.spool, self._count)
        with merged(source, output.spool, output.mesh) as whole:
            return whole.load(output.mesh.device, output.mesh)

    def _count(self, done: int, total: int) -> None:
        self._show(f"{self.label}, {done} of {total} answers")


def _answer_cell(work: Work, task: Task, items: list[Item], model: Answerer) -> list[Answer]:
    scoring = work.scoring(task)
    return answer(
        model, work.kit.prompter, items, scoring,
        budget=batch_tokens(work.settings, model, scoring),
        max_new_tokens=task.answer_tokens, twins=work.settings.twins,
    )  # fmt: skip
