"""`regraft evaluate`: items are made once, then one model after another answers them.

A cell is a task at a length for one model. Its items are made before any model is loaded and every
model gets the same ones, as their hashes show. Answers are written to
OUT/items/MODEL/TASK-LENGTH.jsonl as soon as a cell is done, and a resumed run starts at the first
cell that is not. Under torchrun the processes share the batches of a cell (see
`answers.distributed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import progress
from regraft.input_files import JsonObject
from regraft.records import to_json, write_record
from regraft.units import parse_tokens

if TYPE_CHECKING:
    from regraft.evaluate.prepare import Work
    from regraft.evaluate.result import EvaluationPlan, EvaluationRecord
    from regraft.evaluate.settings import Settings


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
) -> EvaluationRecord | EvaluationPlan | None:
    """Evaluate models and write result.json, figures and a page to `out`.

    models: folders or Hub ids, 'name=MODEL' to name one. With `matrix` the names are recipient,
    donor, graft and, optionally, recovered; the recipient with only the donor's RoPE is added.
    The adapters in `settings` are applied to the model named base, or to the one that they were
    extracted from, and compared with the model named donor, also without `matrix`. Its grafts are
    applied to the recipient one at a time, and compared as the model named graft is.
    lengths: such as '4k,8k'; by default the greatest context among the models (128k at most) and
    its half, quarter and eighth. context_parallel: how many processes share each prompt's tokens,
    split as `regraft.parallel` does it; without it each process gets whole prompts. settings: the
    fields of `settings.Settings`.

    Returns the record in result.json, or the plan of a dry run; None in all processes but the
    first. Raises InputError, before any model is loaded, for wrong arguments and broken input.
    """
    from regraft.evaluate.answers.distributed import (
        broadcast_from_first,
        join_mesh,
        silence_other_processes,
    )
    from regraft.evaluate.answers.model import Source
    from regraft.evaluate.assemble import assemble_record
    from regraft.evaluate.cells import answer_items, judge_answers, make_items
    from regraft.evaluate.cost import plan
    from regraft.evaluate.prepare import prepare, refuse_unsupported_parallelism
    from regraft.evaluate.report.files import write_report
    from regraft.evaluate.result import FILE, EvaluationPlan
    from regraft.evaluate.settings import Settings
    from regraft.evaluate.shared_output import SharedOutput
    from regraft.job import Job

    silence_other_processes()
    chosen = Settings(
        suites=tuple(part.strip() for part in suite.split(",") if part.strip()),
        lengths=tuple(
            sorted({parse_tokens(part, "--lengths") for part in (lengths or "").split(",") if part})
        ),
        **settings,
    )
    mesh = join_mesh(context_parallel, device)
    inputs = input_files(chosen)
    job = broadcast_from_first(
        mesh,
        lambda: Job(out, inputs=inputs, overwrite=overwrite, resume=resume, keep_refused=True),
    )
    work = prepare(list(models), chosen, matrix)
    broadcast_from_first(
        mesh,
        lambda: job.add_inputs(
            str(source.location) for source in work.sources if isinstance(source, Source)
        ),
    )
    refuse_unsupported_parallelism(work, mesh)
    if dry_run:
        return EvaluationPlan(plan=plan(work, mesh.device))
    with mesh.guard(), SharedOutput.open(mesh, lambda: job.start(_identity(work))) as output:
        items = make_items(work, output)
        answers, measures = answer_items(work, items, output)
        if output.staging is None:
            return None
        judge_answers(work, items, answers, output.folder)
        record = assemble_record(work, items, answers, measures, matrix)
        write_record(output.folder / FILE, record)
        with progress.stage("Writing the report"):
            write_report(output.folder, record)
        output.staging.publish()
    return record


def input_files(settings: Settings) -> list[str]:
    """Every file and folder that an evaluation reads, except models."""
    grafts = [point.adapter for point in settings.grafts]
    tokenizer = [settings.tokenizer] if settings.tokenizer else []
    return [*settings.adapters, *grafts, *text_files(settings), *tokenizer]


def text_files(settings: Settings) -> list[str]:
    """The files and folders of texts and questions."""
    suites = [name.partition(":") for name in settings.suites if ":" in name]
    # lm-eval's own tasks are no files
    local = [path for kind, _, path in suites
             if path and (kind != "lm-eval" or path.endswith((".yaml", ".yml")))]  # fmt: skip
    generated = settings.haystack in ("grammar", "code", "world")
    haystack = [] if generated else [settings.haystack]
    return [*haystack, *settings.qa, *local]


def _identity(work: Work) -> JsonObject:
    """Everything that changes the output, as JSON: a run is only resumed by an equal one."""
    from regraft.adapters.folder import digests
    from regraft.adapters.reader import Adapter
    from regraft.file_hashes import paths_content

    settings = replace(work.settings, endpoint_requests=0, endpoint_timeout=0)
    return {
        "evaluate": asdict(settings),
        "files": paths_content(text_files(settings)),
        "models": {source.name: source.identity() for source in work.sources},
        "fidelity": to_json(work.fidelity),
        "grafts": [digests(Adapter.open(one.adapter).folder) for one in work.settings.grafts],
    }
