"""recipe -> a folder of Parquet files with a manifest, a card and a page.

Parts of sources, then sources, then everything: each finished piece of work is in the journal of
the staging folder, so a killed build resumes after the last one. The bytes are the same for any
number of processes.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from regraft.data.build.build import Build
from regraft.data.build.executors.options import CLUSTERS, Kind, check_executor
from regraft.data.build.pipeline import pipeline
from regraft.data.build.process_cache import cached, clearing_cache
from regraft.data.build.read.parts import Listing, list_source
from regraft.data.build.read.report import ReadReport
from regraft.data.build.recipe import Recipe
from regraft.data.build.record import RECORD, DatasetRecord, SourceRecord, TokenizerRecord
from regraft.data.build.report.card import write_card
from regraft.data.build.report.domain_map import FIGURE, draw_map
from regraft.data.build.report.page import write_page
from regraft.data.build.schema import Body, Source
from regraft.data.build.scoring.embedding import Embedder, open_embedder
from regraft.data.build.statistics import Flow, Histogram
from regraft.data.build.steps.diversity import Diversity
from regraft.data.build.tokens import BYTES
from regraft.data.build.work import Setting, counter_of
from regraft.data.sources import paths_of
from regraft.device import check_device, pick_device
from regraft.errors import InputError
from regraft.job import Job
from regraft.records import Plain, versions, write_record
from regraft.units import counted
from regraft.write import write_text

_LIBRARIES = ("pyarrow", "datasets", "datasketch", "tokenizers", "trafilatura", "pypdfium2")


@clearing_cache()
def build_data(
    recipe: str | Path,
    out: str | Path | None,
    *,
    workers: int = 1,
    executor: str | None = None,
    device: str = "auto",
    dry_run: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> DatasetRecord:
    """Build the folder `out` by the recipe at `recipe`. Returns the record of its data.json.

    workers: processes; the output does not depend on it. executor: 'local', 'slurm' or 'ray' for
    the parts of sources as tasks of datatrove. device: of steps that use a model.
    dry_run: check everything and return the record with its plan; `out` may be None then.

    Raises InputError for mistakes in the recipe, missing or empty sources, more broken records than
    the recipe allows; OutputError where the disk refuses, after which `resume` continues.
    """
    if workers < 1:
        raise InputError(f"--workers {workers}: give at least one process.")
    if out is None and not dry_run:
        raise InputError("data build needs an output folder: regraft data build RECIPE -o OUT")
    job = None
    if out is not None:
        job = Job(out, inputs=[recipe], overwrite=overwrite, resume=resume)
    parsed = Recipe.read(recipe)
    body = parsed.body
    kind = None if executor is None else check_executor(executor, body.executor)
    _check_device(body, device, kind)
    if job is not None:
        job.add_inputs(_inputs(parsed))
    parsed.check_steps(servers=not resume)
    listings = {}
    for i, source in enumerate(body.sources):
        try:
            listings[source.name] = list_source(source)
        except InputError as error:
            raise parsed.error(("sources", i), str(error)) from None
    counter = counter_of(body.output.tokenizer)
    record = DatasetRecord(
        recipe=parsed.document.text,
        sources={s.name: _source_record(s, listings[s.name]) for s in body.sources},
        steps=[],
        shards=[],
        mixes=body.mixes,
        tokenizer=TokenizerRecord(name=body.output.tokenizer, digest=counter.digest),
        arguments={"device": device},
        versions=_versions(),
    )
    if dry_run:
        return replace(record, plan=_plan(listings))
    assert job is not None
    states = {name: listing.state for name, listing in listings.items()}
    with job.start(parsed.canonical(), states, _states(parsed), counter.digest, device) as staging:
        setting = Setting(staging.spool, body.output.tokenizer, body.seed, device)
        build = Build(parsed, listings, staging, setting, workers, kind)
        record = build.run(record)
        caption = draw_map(staging.folder / FIGURE, build.sample, _embedder(parsed, device, kind))
        write_record(staging.folder / RECORD, record)
        write_text(staging.folder / "recipe.yaml", parsed.document.text)
        write_card(staging.folder, record, job.target.name, caption)
        write_page(staging.folder / "index.html", record, job.target.name, caption)
        staging.publish()
    return record


def _check_device(body: Body, device: str, kind: Kind | None) -> None:
    """Raise InputError where this machine lacks the device of a step that runs on it, or torch has
    it on none. A task on another machine fails before it reads text where that one lacks it."""
    check_device(device)
    steps = pipeline(body)
    here = [*steps.on_all, *(placed for chain in steps.chains for placed in chain.on_source)]
    if kind not in CLUSTERS:
        here += [placed for chain in steps.chains for placed in chain.on_parts]
    if any(placed.step.uses_device for placed in here):
        pick_device(device)


def _embedder(recipe: Recipe, device: str, kind: Kind | None) -> Embedder | None:
    """The embedder of the first step `diversity`, on this machine; None where there is none."""
    if kind in CLUSTERS and device != "cpu":
        device = "auto"  # the step may have run on other machines
    for _, step in recipe.steps():
        if isinstance(step, Diversity):
            return cached(open_embedder, step.model, pick_device(device))
    return None


def _inputs(recipe: Recipe) -> list[str | Path]:
    """Everything that a build reads."""
    result: list[str | Path] = []
    for source in recipe.body.sources:
        if source.kind == "code":
            result.append(source.location)
        elif source.kind != "hub":
            result += paths_of(source.location)
    for _, step in recipe.steps():
        result += step.inputs()
    tokenizer = recipe.body.output.tokenizer
    return [*result, *([] if tokenizer == BYTES else [tokenizer])]


def _states(recipe: Recipe) -> list[tuple[str, int, int]]:
    """Size and time of the files that steps read; of a folder those of the files in it."""
    result = []
    for _, step in recipe.steps():
        for path in map(Path, step.inputs()):
            inner = sorted(path.rglob("*")) if path.is_dir() else [path]
            result += [
                (str(file), state.st_size, state.st_mtime_ns)
                for file in inner
                if file.is_file()
                for state in [file.stat()]
            ]
    return result


def _source_record(source: Source, listing: Listing) -> SourceRecord:
    """A source before it is read."""
    return SourceRecord(
        kind=source.kind, location=source.location, licence=source.licence, rows=source.rows,
        chat=source.chat, revision=listing.state[0][0] if source.kind == "hub" else "",
        files=listing.files, bytes=listing.bytes, report=ReadReport(), read=Flow(), out=Flow(),
        characters_before=Histogram(), characters=Histogram(), tokens=Histogram(),
    )  # fmt: skip


def _plan(listings: dict[str, Listing]) -> dict[str, Plain]:
    plan: dict[str, Plain] = {
        f"source {name}": f"{counted(listing.files, 'file')} in "
        f"{counted(len(listing.parts), 'part')}"
        for name, listing in listings.items()
    }
    read = sum(listing.bytes for listing in listings.values())
    return {**plan, "read_bytes": read, "staging_bytes": 2 * read}


def _versions() -> dict[str, str]:
    result = versions()
    for name in _LIBRARIES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            continue
    return result
