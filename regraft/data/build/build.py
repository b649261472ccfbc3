"""The work of a build: parts of sources, then whole sources, then everything together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from regraft import progress
from regraft.checkpoint.write.staging import Staging
from regraft.data.build.disk_table import DiskTable
from regraft.data.build.document import Document
from regraft.data.build.executors.options import Kind
from regraft.data.build.executors.runner import DatatroveRunner
from regraft.data.build.pipeline import ALL, Chain, Pipeline, pipeline, run_steps
from regraft.data.build.pool import Pool
from regraft.data.build.read.parts import Listing
from regraft.data.build.read.report import ReadReport
from regraft.data.build.recipe import Recipe
from regraft.data.build.record import DatasetRecord, SourceRecord, total
from regraft.data.build.report.domain_map import Sample
from regraft.data.build.shards import Shards
from regraft.data.build.statistics import Flow, Histogram, Statistics
from regraft.data.build.step import read_spool
from regraft.data.build.tokens import count_tokens
from regraft.data.build.work import (
    DONE,
    Calls,
    Done,
    Setting,
    counter_of,
    do_part,
    do_source,
    key_of,
    path_of,
    spool_hash,
)
from regraft.errors import InputError
from regraft.records import to_json

_MOST_HASHES = 1000  # listed in the record; of more files only the hash of all


class Build:
    """One run of a recipe in a staging folder, which may hold the work of an interrupted one."""

    def __init__(
        self,
        recipe: Recipe,
        listings: dict[str, Listing],
        staging: Staging,
        setting: Setting,
        workers: int,
        executor: Kind | None = None,
    ) -> None:
        self.recipe, self.body, self.listings = recipe, recipe.body, listings
        self.staging, self.setting, self.workers = staging, setting, workers
        self.pipeline: Pipeline = pipeline(recipe.body)
        self.done: dict[str, Done] = {}
        self.sample = Sample([source.name for source in self.body.sources])
        self.runner: DatatroveRunner | None = None
        if executor is not None:
            self.runner = DatatroveRunner(executor, self.body.executor, setting, workers)

    def run(self, record: DatasetRecord) -> DatasetRecord:
        """Do what is not done yet; the record with everything counted."""
        if self.runner:  # with a record the folder stays for tasks that outlive this process
            self.staging.record("executor")
        with Pool(self.workers) as pool:
            parts = {
                part.key: (do_part, (self.setting, steps, part))
                for steps in self.pipeline.chains
                for part in self.listings[steps.source.name].parts
            }
            self._do(self.runner or pool, parts, "Reading")
            sources = {
                steps.source.name: self._source(steps, record) for steps in self.pipeline.chains
            }
            whole = {
                key_of(steps.source.name): (do_source, self._whole(steps))
                for steps in self.pipeline.chains
                if steps.on_source
            }
            self._do(pool, whole, "Working on sources")
        return self._finish(replace(record, sources=sources))

    def _do(self, pool: Pool | DatatroveRunner, calls: Calls, name: str) -> None:
        """Do the pieces of work that the journal does not have, and add them to it."""
        for key in calls:
            facts = self.staging.done(key)
            if facts is not None and spool_hash(path_of(self.setting, key)) == facts["xxh3"]:
                self.done[key] = DONE.validate_python(facts)
        missing = {key: call for key, call in calls.items() if key not in self.done}
        if not missing:
            return
        with progress.bar(name, len(calls)) as bar:
            bar.skip(len(calls) - len(missing))
            results = pool.run(missing)
            for _ in missing:
                with bar.part(1):  # moves by documents where this process does the work
                    key, done = next(results)
                self.done[key] = done
                self.staging.record(key, **to_json(done))

    def _whole(self, steps: Chain) -> tuple[Setting, Chain, list[str], int]:
        """The arguments of `do_source`."""
        parts = self._parts(steps)
        return self.setting, steps, parts, sum(self.done[key].number for key in parts)

    def _parts(self, steps: Chain) -> list[str]:
        return [part.key for part in self.listings[steps.source.name].parts]

    def _source(self, steps: Chain, record: DatasetRecord) -> SourceRecord:
        """What was read of a source. Raises InputError where too much of it is broken."""
        source = steps.source
        report, read, before = ReadReport(), Flow(), Histogram()
        for key in self._parts(steps):
            done = self.done[key]
            report.include(done.report)
            read.include(done.read)
            before.include(done.before)
        examples = "; ".join(report.examples[:3])
        where = ("sources", self.body.sources.index(source))
        if report.broken > source.broken * report.records:
            raise self.recipe.error(
                where,
                f"{report.broken:,} of {report.records:,} records of '{source.name}' are broken "
                f"({report.broken / report.records:.2%}; {examples}); correct them, or raise "
                "`broken` to leave them out.",
            )
        if report.broken:
            progress.warn(
                f"{report.broken:,} of {report.records:,} records of '{source.name}' are broken "
                f"and left out: {examples}"
            )
        if report.empty:
            progress.note(
                f"{report.empty:,} of {report.records:,} records of '{source.name}' have no text"
            )
        if not read.documents:
            raise self.recipe.error(where, f"'{source.name}' has no text; give another source.")
        revision = record.sources[source.name].revision
        if report.hashes:
            listed = "".join(f"{name} {digest}\n" for name, digest in sorted(report.hashes.items()))
            revision = hashlib.sha256(listed.encode()).hexdigest()
        if len(report.hashes) > _MOST_HASHES:
            report.hashes = {}
        return replace(
            record.sources[source.name],
            report=report,
            read=read,
            characters_before=before,
            revision=revision,
        )

    def _finish(self, record: DatasetRecord) -> DatasetRecord:
        """Run the steps on everything, and write the shards."""
        counter = counter_of(self.setting.tokenizer)
        documents, last = run_steps(
            self.pipeline.on_all, self._documents(), counter, self.setting.folder / "all-steps",
            seed=self.setting.seed, device=self.setting.device,
        )  # fmt: skip
        repeated: dict[str, int] = {}
        expected = total(source.read for source in record.sources.values()).documents
        with (
            progress.bar("Writing", expected) as bar,
            DiskTable(self.setting.folder / "ids") as ids,
            Shards(self.staging.folder, self.body.output.shard) as shards,
        ):
            for document in count_tokens(documents, counter):
                name, own = document.source, document.id
                while not ids.add_new(f"{name}\n{document.id}".encode()):
                    repeated[name] = repeated.get(name, 0) + 1
                    document = replace(document, id=f"{own}~{repeated[name]}")
                shards.add(document)
                self.sample.add(document)
                bar.advance()
        steps = self._statistics(last)
        sources, warnings = {}, []
        for name, source in record.sources.items():
            written = shards.written.get(name)
            if written is None:
                raise InputError(_all_dropped(name, steps))
            if repeated.get(name):
                warnings.append(
                    f"{repeated[name]:,} documents of '{name}' had the id of another one; theirs "
                    "now ends in a number."
                )
            if 0 < written.conversations < written.out.documents:
                warnings.append(
                    f"{written.conversations:,} of {written.out.documents:,} documents of '{name}' "
                    "are conversations, and a training reads all of them as text; for turns take a "
                    "source of its own with `share: 1`."
                )
            sources[name] = replace(
                source,
                chat=written.conversations == written.out.documents,
                out=written.out,
                characters=written.characters,
                tokens=written.tokens,
                repeated_ids=repeated.get(name, 0),
            )
        for statistics in steps:
            warnings += self.pipeline.steps[statistics.step].warnings(statistics)
        for warning in warnings:
            progress.warn(warning)
        return replace(
            record, sources=sources, steps=steps, shards=shards.records, warnings=warnings
        )

    def _documents(self) -> Iterator[Document]:
        """The documents of all sources after their own steps."""
        for steps in self.pipeline.chains:
            keys = [key_of(steps.source.name)] if steps.on_source else self._parts(steps)
            yield from chain.from_iterable(read_spool(path_of(self.setting, key)) for key in keys)

    def _statistics(self, last: list[Statistics]) -> list[Statistics]:
        """The statistics of every step, over all parts and sources."""
        result = {label: Statistics(label) for label in self.pipeline.steps}
        for done in [*(self.done[key] for key in sorted(self.done)), Done("", 0, last)]:
            for statistics in done.steps:
                result[statistics.step].include(statistics)
        return list(result.values())


def _all_dropped(name: str, steps: list[Statistics]) -> str:
    reasons = [
        f"{step.step}: {reason} ({count:,})"
        for step in steps
        if step.step.startswith((f"{name}/", f"{ALL}/"))
        for reason, count in step.dropped.items()
    ]
    listed = f" ({'; '.join(reasons)})" if reasons else ""
    return f"No document of '{name}' passed the steps{listed}; loosen them, or give more text."
