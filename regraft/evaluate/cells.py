"""The cells of an evaluation: their items, every model's answers, the judge's verdicts.

Each step skips what an interrupted run has already written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from regraft import progress
from regraft.data.generate.fit import TooShort
from regraft.errors import InputError
from regraft.evaluate.answers.distributed import broadcast_from_first, map_over_processes
from regraft.evaluate.answers.judge import add_verdicts
from regraft.evaluate.answers.scoring import Answerer, answer
from regraft.evaluate.answers.served.model import ServedModel
from regraft.evaluate.answers.served.source import ServedSource
from regraft.evaluate.cost import Operations
from regraft.evaluate.fidelity import merged
from regraft.evaluate.measures import Measurer, batch_tokens
from regraft.evaluate.prepare import Evaluated, Work
from regraft.evaluate.result import Answer, Measures, parse_answers
from regraft.evaluate.shared_output import SharedOutput, read_lines
from regraft.evaluate.tasks import Item, Task
from regraft.parallel import Mesh
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
    with progress.bar("prompts", total=len(work.tasks) * len(work.lengths)) as bar:
        for task in work.tasks:
            for length in work.lengths:
                path = output.spool / f"{task.name}-{length}.jsonl"
                bar.advance(1, f"{task.name} {format_tokens(length)}")
                if not output.has(f"items {path.name}", path):
                    try:
                        items = _items(work, task, length, output.mesh)
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


def _items(work: Work, task: Task, length: int, mesh: Mesh) -> list[Item]:
    """The items of one task and length. Collective."""
    count, questions = work.settings.items, work.settings.questions_per_text
    if questions == 1 or task.make_group is None:
        numbers = range(min(count, task.max_items or count))
        return map_over_processes(mesh, numbers, partial(task.item, work.kit, length))
    first = task.group(work.kit, length, 0, questions)
    work.kit.group_sizes[task.name, length] = len(first)
    others = range(1, -(-count // len(first)))  # a group has the same size for every text
    groups = map_over_processes(
        mesh, others, lambda text: task.group(work.kit, length, text, questions)
    )
    return [item for group in (first, *groups) for item in group][:count]


def answer_items(
    work: Work, files: ItemFiles, output: SharedOutput
) -> tuple[Answers, dict[str, Measures]]:
    """Every model's answers and measures, in all processes. A model is loaded when its first
    unfinished cell needs it."""
    tasks = {task.name: task for task in work.tasks}
    answers: Answers = {}
    measures: dict[str, Measures] = {}
    measurer = Measurer(work, output)
    costs = [Operations(work, source, output.mesh.device) for source in work.sources]
    sizes = [
        [*cost.measures().values(), *(cost.cell(tasks[task], length) for task, length in files)]
        for cost in costs
    ]
    total = sum(map(sum, sizes))
    with progress.bar("models", total=total or None) as bar:
        for source, cost in zip(work.sources, costs, strict=True):
            model = _LazyModel(work, source, output, lambda text: bar.advance(0, text))
            for (task, length), path in files.items():
                size = cost.cell(tasks[task], length)
                if task in source.unsupported:
                    bar.skip(size)
                    continue
                model.label = f"{source.name}: {task} {format_tokens(length)}"
                bar.advance(0, model.label)
                target = output.folder / "items" / source.folder / path.name
                key = f"cell {source.name} {path.name}"
                if output.has(key, target):
                    bar.skip(size)
                else:
                    items = [Item.from_json(line) for line in output.read(path)]
                    with bar.part(size):
                        lines = _answer_cell(work, tasks[task], items, model)
                    output.write(key, target, [to_json(line) for line in lines])
                answers[source.name, task, length] = parse_answers(output.read(target))
            model.label = source.name
            measures[source.name] = measurer.measure_once(source, model.get, bar, cost.measures())
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
        self._warned: set[str] = set()
        self.label = source.name

    def get(self) -> Answerer:
        """The model, in all processes. Collective."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def can_share(self, length: int) -> bool:
        """Whether a text of `length` tokens is read once for all questions about it; otherwise a
        warning says why, except for a served model. Collective."""
        model = self.get()
        if isinstance(model, ServedModel):
            return False
        reason = broadcast_from_first(self._output.mesh, lambda: model.why_not_shared(length))
        if reason is not None and reason not in self._warned:
            progress.warn(f"{model.name} reads the text again for every question, since {reason}.")
            self._warned.add(reason)
        return reason is None

    def _load(self) -> Answerer:
        source, output = self._source, self._output
        if isinstance(source, ServedSource):
            return source.connect(self._work.kit.prompter, output.spool, self._count)
        with merged(source, output.spool, output.mesh) as whole:
            return whole.load(output.mesh.device, output.mesh)

    def _count(self, done: int, total: int) -> None:
        self._show(f"{self.label}, {done} of {total} answers")


def _answer_cell(work: Work, task: Task, items: list[Item], model: _LazyModel) -> list[Answer]:
    scoring, loaded = work.scoring(task), model.get()
    return answer(
        loaded, work.kit.prompter, items, scoring,
        budget=batch_tokens(work.settings, loaded, scoring),
        max_new_tokens=task.answer_tokens, twins=work.settings.twins,
        shared=items[0].text is not None and model.can_share(items[0].length),
    )  # fmt: skip
